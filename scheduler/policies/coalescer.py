"""The first policy: jobs grouped by adapter, resident adapters first, oldest first, nobody starved.

One round goes through the backlog in this order, and stops where no worker has room:

1. jobs with a strike, each alone on an empty worker;
2. jobs that waited longer than their class may, the longest overdue first, whatever their adapter;
3. for each class: lanes whose adapter is on a device, then in a host cache, then the others by age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from scheduler.policies.backlog import NUM_CLASSES, Backlog
from scheduler.policies.lane import Lane
from scheduler.policies.room import Room, Tier, best_room
from scheduler.policies.types import PendingJob, PlannedBatch, Revision, WorkerView


def plan(backlog: Backlog, workers: Sequence[WorkerView], now: float) -> list[PlannedBatch]:
    """Take jobs out of the backlog for every worker with room; at most one micro-batch each.

    `now` is the monotonic clock that the jobs' `waiting_since` was read from.
    """
    if not len(backlog):
        return []
    rooms = [Room(view, backlog.config.max_batch_jobs) for view in workers]
    if not any(room.is_open for room in rooms):
        return []
    _plan_struck(backlog, rooms)
    _plan_overdue(backlog, rooms, now)
    for priority in range(NUM_CLASSES):
        _plan_resident(backlog, rooms, priority, Tier.DEVICE)
        _plan_resident(backlog, rooms, priority, Tier.HOST)
        _plan_cold(backlog, rooms, priority)
    return [room.batch() for room in rooms if room.planned]


def _plan_struck(backlog: Backlog, rooms: Sequence[Room]) -> None:
    """Give each job with a strike a worker of its own, on at most half of the workers at a time."""
    budget = max(1, len(rooms) // 2) - sum(room.view.runs_alone for room in rooms)
    while budget > 0 and (job := backlog.struck.head()):
        able = [room for room in rooms if not room.closed and room.admits(job)]
        room = min(able, key=lambda room: (room.view.num_outstanding, room.view.incarnation), default=None)
        if room is None:
            return
        room.closed = True
        budget -= 1
        if not room.is_empty:
            return  # it drains now; next round, or the one after, it is empty
        backlog.take(job.job_id)
        room.place(job)


def _plan_overdue(backlog: Backlog, rooms: Sequence[Room], now: float) -> None:
    """Give lanes with overdue jobs their turns; where one finds no room, make some before others get it."""
    aside: list[Lane] = []
    num_held_up = 0
    while any(room.is_open for room in rooms) and num_held_up < backlog.config.max_set_aside:
        found = backlog.by_due.first()
        if found is None or found[0].at > now:
            break
        lane = found[1]
        if _take_turn(backlog, rooms, lane, now):
            continue
        if job := lane.head():
            _make_room(rooms, job)
            num_held_up += _is_admitted(rooms, job)
        backlog.by_due.set_aside(lane)
        aside.append(lane)
    for lane in aside:
        backlog.by_due.push(lane)


def _take_turn(backlog: Backlog, rooms: Sequence[Room], lane: Lane, now: float) -> bool:
    """Place a few overdue jobs of a lane; False where not even the first finds room."""
    left = backlog.config.turn_jobs

    def choose(job: PendingJob) -> Room | None:
        nonlocal left
        left -= 1
        return best_room(rooms, job) if left >= 0 and backlog.is_overdue(job, now) else None

    placed = _drain(backlog, lane, choose)
    if placed:
        backlog.end_turn(lane, now)
    return placed > 0


def _make_room(rooms: Sequence[Room], job: PendingJob) -> None:
    """Choose one worker that will run the overdue job, and stop feeding what stands in its way there.

    Slots are missing: the adapter with the fewest jobs outstanding gets no more, so its slot comes free.
    Tokens are missing: nobody gets any until the job fits. Each worker makes room for one job at a time.
    """
    able = [room for room in rooms if room.is_open and room.barred is None and room.admits(job)]
    blocked = next((room for room in able if room.has_slot(job.revision)), None)
    if blocked is not None:
        blocked.closed = True
        return
    chosen = min(able, key=_jobs_of_victim, default=None)
    if chosen is not None:
        chosen.barred = chosen.victim()


def _jobs_of_victim(room: Room) -> tuple[int, str]:
    victim = room.victim()
    return (room.revisions[victim] if victim else 0, room.view.incarnation)


def _plan_resident(backlog: Backlog, rooms: Sequence[Room], priority: int, tier: Tier) -> None:
    """Fill workers with jobs whose adapter they have at hand, lanes with the oldest head first."""
    lanes = [lane for name in _at_hand(rooms, tier) if (lane := backlog.lane(priority, name))]
    for lane in sorted(lanes, key=_head_order):
        _drain(backlog, lane, lambda job: best_room(rooms, job, tier))


def _at_hand(rooms: Iterable[Room], tier: Tier) -> set[Revision]:
    names: set[Revision] = {None} if tier is Tier.DEVICE else set()
    for room in rooms:
        if room.is_open:
            names.update(room.view.host if tier is Tier.HOST else [*room.revisions, *room.view.device])
    return names


def _plan_cold(backlog: Backlog, rooms: Sequence[Room], priority: int) -> None:
    """Bring in adapters that no worker has, the one whose job waited longest first."""
    aside: list[Lane] = []
    num_held_up = 0
    while _takes_another_adapter(rooms) and num_held_up < backlog.config.max_set_aside:
        found = backlog.by_age[priority].first()
        if found is None:
            break
        lane = found[1]
        _drain(backlog, lane, lambda job: best_room(rooms, job))
        if job := lane.head():
            num_held_up += _is_admitted(rooms, job)
            backlog.by_age[priority].set_aside(lane)
            aside.append(lane)
    for lane in aside:
        backlog.by_age[priority].push(lane)


def _is_admitted(rooms: Iterable[Room], job: PendingJob) -> bool:
    """Whether a job waits for room; one that no worker here could ever run must not hold up the others."""
    return any(room.admits(job) for room in rooms)


def _takes_another_adapter(rooms: Iterable[Room]) -> bool:
    return any(room.is_open and len(room.revisions) < room.view.capacity.max_loras for room in rooms)


def _drain(backlog: Backlog, lane: Lane, choose: Callable[[PendingJob], Room | None]) -> int:
    """Place the jobs of a lane, oldest first, until one finds no room; answer how many."""
    placed = 0
    while (job := lane.head()) and (room := choose(job)):
        backlog.take(job.job_id)
        room.place(job)
        placed += 1
    return placed


def _head_order(lane: Lane) -> tuple[float, int, str]:
    head = lane.head()
    assert head is not None, "a lane in the index holds a job"
    return (*head.order, lane.name.revision or "")
