"""Which results go into the next group, and what became of those that did not get in."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from db.records import FinishedJob, JobAttempt
from workers.outcomes import Outcome

GATHER_S = 0.01
"""From one group to the next: an idle worker's result goes out at once, and a busy one's gather."""

MAX_GROUP = 256
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0


@dataclass(slots=True)
class Group:
    """Mutable: ends for one transaction, under the number that the ledger knows it by, and how far it is.

    Suspects were refused before for no known reason, and get one try.
    """

    seq: int
    outcomes: Sequence[Outcome]
    are_suspects: bool
    began_at: float
    tried_at: float = 0.0
    retry_s: float = FIRST_RETRY_S
    finished: list[FinishedJob] | None = None
    """What the ledger moved, once it has taken the group."""


class CommitQueue:
    """Mutable and thread-safe: the results that are not in the ledger yet, by whose turn it is.

    Parts of a group with a bad row go before all others; fresh results and suspects take turns. One group is
    in flight at a time, and stays so until `let_go`. Spilled results come back as suspects when they are due.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._took_at = float("-inf")
        self._wake = threading.Condition()
        self._in_flight: Group | None = None
        self._parts: deque[Sequence[Outcome]] = deque()
        """Of a group with a bad row."""
        self._waiting: deque[Outcome] = deque()
        self._suspects: deque[Sequence[Outcome]] = deque()
        self._spilled: dict[JobAttempt, Outcome] = {}
        self._spilled_due_at = 0.0
        self._last_were_suspects = False
        self._seq = itertools.count(1)

    @property
    def num_kept(self) -> int:
        """Results in memory, the spilled ones included."""
        with self._wake:
            return self._num_unwritten() + len(self._spilled)

    def put(self, *outcomes: Outcome) -> None:
        """Take results that came together; never blocks and never refuses."""
        with self._wake:
            self._waiting += outcomes
            self._wake.notify_all()

    def notify(self) -> None:
        """Have whoever waits look again at what it waits for."""
        with self._wake:
            self._wake.notify_all()

    def await_written(self, timeout_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait until all is written or spilled, or nobody writes any more; False if something is left.

        What was spilled before is tried once more.
        """
        with self._wake:
            self._spilled_due_at = 0.0
            self._wake.notify_all()
            self._wake.wait_for(lambda: is_over() or not self._num_unwritten(), timeout_s)
            return not self._num_unwritten()

    def next_group(self, stopping: threading.Event) -> Group | None:
        """Return the group in flight; if there is none, wait for results and send one off."""
        if self._in_flight is not None:
            return self._in_flight
        if not self._parts:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._waiting or self._suspects or stopping.is_set(),
                    LAST_RETRY_S if self._spilled else None,
                )
            stopping.wait(max(0.0, self._took_at + GATHER_S - self._clock()))
        with self._wake:
            if not stopping.is_set():
                outcomes, are_suspects = self._take()
                if outcomes:
                    self._took_at = self._clock()
                    self._in_flight = Group(next(self._seq), outcomes, are_suspects, self._took_at)
            return self._in_flight

    def let_go(
        self, *, parts: Sequence[Sequence[Outcome]] = (), suspects: Sequence[Sequence[Outcome]] = ()
    ) -> None:
        """End the flight of a group: what is left of it goes before all others, or is suspected."""
        with self._wake:
            self._parts.extendleft(reversed(parts))
            self._suspects += suspects
            self._in_flight = None
            self._wake.notify_all()

    def set_aside(self, one: Outcome, for_s: float) -> None:
        """End the flight of a result that was spilled; it and all like it are tried again in `for_s`."""
        with self._wake:
            self._spilled[one.key] = one
            self._spilled_due_at = self._clock() + for_s
            self.let_go()

    def _num_unwritten(self) -> int:
        in_flight = 0 if self._in_flight is None else len(self._in_flight.outcomes)
        return in_flight + len(self._waiting) + sum(map(len, self._parts)) + sum(map(len, self._suspects))

    def _take(self) -> tuple[Sequence[Outcome], bool]:
        """Take a fresh group and one of suspects by turns; tells which it is."""
        if self._parts:
            return self._parts.popleft(), False
        if self._spilled and self._clock() >= self._spilled_due_at:
            self._suspects += [[outcome] for outcome in self._spilled.values()]
            self._spilled.clear()
        are_suspects = bool(self._suspects) and not (self._waiting and self._last_were_suspects)
        self._last_were_suspects = are_suspects
        if are_suspects:
            return self._suspects.popleft(), are_suspects
        return [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))], are_suspects
