"""One tenant's lanes, in the orders in which its turns look at them."""

from __future__ import annotations

import math

from scheduler.policies.fairness import Share
from scheduler.policies.keyed_queue import Key, KeyedQueue
from scheduler.policies.lane import Lane
from scheduler.policies.types import PolicyConfig

NUM_CLASSES = 3


class TenantQueue:
    """Mutable: class, age and deadline order lanes in here, and never one tenant's before another's."""

    __slots__ = ("_by_class", "_config", "dated", "due", "num_lanes", "share")

    def __init__(self, share: Share, config: PolicyConfig) -> None:
        self.share = share
        self.num_lanes = 0
        self._config = config
        self.due: KeyedQueue[Lane] = KeyedQueue(self._due)
        """Lanes without deadlines, the one ahead that is overdue the longest and had no turn lately."""
        self.dated: KeyedQueue[Lane] = KeyedQueue(self._due)
        """Lanes with deadlines, the one that has to start the earliest ahead."""
        self._by_class: dict[int, KeyedQueue[Lane]] = {}

    def push(self, lane: Lane) -> None:
        """Let a lane in, or note that its head or its number of jobs has changed."""
        self._by_time(lane).push(lane)
        queue = self._by_class.get(lane.name.priority)
        if queue is None:
            queue = self._by_class[lane.name.priority] = KeyedQueue(self._worth)
        queue.push(lane)

    def forget(self, lane: Lane) -> None:
        """Let an empty lane go."""
        self.num_lanes -= 1
        self._by_time(lane).set_aside(lane)
        self.set_aside(lane)

    def set_aside(self, lane: Lane) -> None:
        """Pass a lane over in its class until it is pushed again."""
        self._by_class[lane.name.priority].set_aside(lane)

    def first_of(self, priority: int) -> Lane | None:
        """Show the lane of a class whose adapter is most worth loading."""
        queue = self._by_class.get(priority)
        return None if queue is None else queue.first()

    def classes(self) -> list[int]:
        """List the classes that it has had lanes of, the most urgent first."""
        return sorted(self._by_class)

    def due_at(self, lane: Lane) -> float | None:
        """Tell when a lane is overdue, or has to start for its first deadline; None if it is empty."""
        head = lane.head()
        if head is None:
            return None
        if lane.name.is_late:
            return math.inf
        if lane.name.has_deadlines:
            return lane.head_at()
        return max(head.waiting_since + self._config.starvation_s[head.priority], lane.turn_at)

    def _by_time(self, lane: Lane) -> KeyedQueue[Lane]:
        return self.dated if lane.name.has_deadlines and not lane.name.is_late else self.due

    def _due(self, lane: Lane) -> Key | None:
        due_at, head = self.due_at(lane), lane.head()
        return None if due_at is None or head is None else (due_at, head.admit_seq)

    def _worth(self, lane: Lane) -> Key | None:
        head = lane.head()
        if head is None:
            return None
        return (lane.name.is_late, -self._jobs_per_load(lane, head.adapter_bytes), *head.order)

    def _jobs_per_load(self, lane: Lane, num_bytes: int) -> int:
        """Tell how many jobs a load serves, in powers of two, so that few arrivals change the order.

        An adapter is weighed by its bytes in the same way: twice the size is worth half the jobs.
        """
        if self._config.policy != "fair":
            return 0
        return lane.num_jobs.bit_length() - num_bytes.bit_length()
