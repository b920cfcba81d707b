"""The first policy: jobs grouped by adapter, resident adapters first, oldest first, nobody starved.

One round goes through the backlog in this order, and stops when no worker has room:

1. suspects, each group by itself on an empty worker;
2. jobs that waited longer than their class may, the longest overdue first, whatever their adapter;
3. for each class: lanes whose adapter is on a device, then in a host cache, then the others by age.

A worker whose host is in doubt takes part with one job. It gets a suspect only after all else, and only one
that no other worker could run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from scheduler.policies.backlog import NUM_CLASSES, Backlog
from scheduler.policies.lane import Lane
from scheduler.policies.types import PendingJob, PlannedBatch, Revision, WorkerView
from scheduler.policies.worker_budget import AdapterTier, WorkerBudget, best_worker


def plan(backlog: Backlog, views: Sequence[WorkerView], now: float) -> list[PlannedBatch]:
    """Take jobs out of the backlog for every worker with room; at most one micro-batch each.

    `now` is the monotonic clock that the jobs' `waiting_since` was read from.
    """
    if not len(backlog):
        return []
    workers = [WorkerBudget(view, backlog.config.max_batch_jobs) for view in views]
    if not any(worker.is_open for worker in workers):
        return []
    sound = [worker for worker in workers if not worker.view.is_canary]
    _plan_suspects(backlog, sound)
    _plan_overdue(backlog, workers, now)
    for priority in range(NUM_CLASSES):
        _plan_resident(backlog, workers, priority, AdapterTier.DEVICE)
        _plan_resident(backlog, workers, priority, AdapterTier.HOST)
        _plan_cold(backlog, workers, priority)
    _plan_lone_suspects(backlog, [worker for worker in workers if worker.view.is_canary], sound)
    return [worker.batch() for worker in workers if worker.planned]


def _plan_suspects(backlog: Backlog, workers: Sequence[WorkerBudget]) -> None:
    """Give each group of suspects a worker of its own, on at most half of the workers at a time."""
    budget = max(1, len(workers) // 2) - sum(worker.view.runs_alone for worker in workers)
    for group in backlog.suspects.in_order():
        if budget <= 0:
            return
        able = [worker for worker in workers if not worker.closed and worker.admits(group[0])]
        worker = min(
            able, key=lambda worker: (worker.view.num_outstanding, worker.view.incarnation), default=None
        )
        if worker is None:
            continue
        budget -= 1
        if worker.is_empty:
            _place_suspects(backlog, worker, group)
        worker.closed = True
        if not worker.planned:
            return  # it drains now; next round, or the one after, it is empty


def _place_suspects(backlog: Backlog, worker: WorkerBudget, group: Sequence[PendingJob]) -> None:
    """Place what fits of a group; the rest of it runs after these."""
    for job in group:
        if worker.fits(job):
            backlog.take(job.job_id)
            worker.place(job)


def _plan_lone_suspects(
    backlog: Backlog, canaries: Sequence[WorkerBudget], sound: Sequence[WorkerBudget]
) -> None:
    """Give each worker in doubt that got nothing else one suspect that no other could run."""
    for worker in canaries:
        for job in [job for group in backlog.suspects.in_order() for job in group]:
            if worker.is_empty and worker.fits(job) and not _is_admitted(sound, job):
                _place_suspects(backlog, worker, [job])


def _plan_overdue(backlog: Backlog, workers: Sequence[WorkerBudget], now: float) -> None:
    """Give lanes with overdue jobs their turns; if one finds no room, make some before others get it."""
    aside: list[Lane] = []
    num_held_up = 0
    while any(worker.is_open for worker in workers) and num_held_up < backlog.config.max_set_aside:
        found = backlog.by_due.first()
        if found is None or found[0].at > now:
            break
        lane = found[1]
        if _take_turn(backlog, workers, lane, now):
            continue
        if job := lane.head():
            _make_room(workers, job)
            num_held_up += _is_admitted(workers, job)
        backlog.by_due.set_aside(lane)
        aside.append(lane)
    for lane in aside:
        backlog.by_due.push(lane)


def _take_turn(backlog: Backlog, workers: Sequence[WorkerBudget], lane: Lane, now: float) -> bool:
    """Place a few overdue jobs of a lane; False if not even the first finds room."""
    left = backlog.config.turn_jobs

    def choose(job: PendingJob) -> WorkerBudget | None:
        nonlocal left
        left -= 1
        return best_worker(workers, job) if left >= 0 and backlog.is_overdue(job, now) else None

    placed = _drain(backlog, lane, choose)
    if placed:
        backlog.end_turn(lane, now)
    return placed > 0


def _make_room(workers: Sequence[WorkerBudget], job: PendingJob) -> None:
    """Choose one worker that will run the overdue job, and stop feeding what stands in its way there.

    Slots are missing: the adapter with the fewest jobs outstanding gets no more, so its slot comes free.
    Tokens are missing: nobody gets any until the job fits. Each worker makes room for one job at a time.
    """
    able = [worker for worker in workers if worker.is_open and worker.barred is None and worker.admits(job)]
    blocked = next((worker for worker in able if worker.has_slot(job.revision)), None)
    if blocked is not None:
        blocked.closed = True
        return
    chosen = min(able, key=_jobs_of_victim, default=None)
    if chosen is not None:
        chosen.barred = chosen.victim()


def _jobs_of_victim(worker: WorkerBudget) -> tuple[int, str]:
    victim = worker.victim()
    return (worker.revisions[victim] if victim else 0, worker.view.incarnation)


def _plan_resident(
    backlog: Backlog, workers: Sequence[WorkerBudget], priority: int, tier: AdapterTier
) -> None:
    """Fill workers with jobs whose adapter they have at hand, lanes with the oldest head first."""
    lanes = [lane for name in _at_hand(workers, tier) if (lane := backlog.lane(priority, name))]
    for lane in sorted(lanes, key=_head_order):
        _drain(backlog, lane, lambda job: best_worker(workers, job, tier))


def _at_hand(workers: Iterable[WorkerBudget], tier: AdapterTier) -> set[Revision]:
    names: set[Revision] = {None} if tier is AdapterTier.DEVICE else set()
    for worker in workers:
        if worker.is_open:
            names.update(
                worker.view.host if tier is AdapterTier.HOST else [*worker.revisions, *worker.view.device]
            )
    return names


def _plan_cold(backlog: Backlog, workers: Sequence[WorkerBudget], priority: int) -> None:
    """Bring in adapters that no worker has, the one whose job waited longest first."""
    aside: list[Lane] = []
    num_held_up = 0
    while _takes_another_adapter(workers) and num_held_up < backlog.config.max_set_aside:
        found = backlog.by_age[priority].first()
        if found is None:
            break
        lane = found[1]
        _drain(backlog, lane, lambda job: best_worker(workers, job))
        if job := lane.head():
            num_held_up += _is_admitted(workers, job)
            backlog.by_age[priority].set_aside(lane)
            aside.append(lane)
    for lane in aside:
        backlog.by_age[priority].push(lane)


def _is_admitted(workers: Iterable[WorkerBudget], job: PendingJob) -> bool:
    """Whether a job waits for room; one that no worker here could ever run must not hold up the others."""
    return any(worker.admits(job) for worker in workers)


def _takes_another_adapter(workers: Iterable[WorkerBudget]) -> bool:
    return any(
        worker.is_open and len(worker.revisions) < worker.view.capacity.max_loras for worker in workers
    )


def _drain(backlog: Backlog, lane: Lane, choose: Callable[[PendingJob], WorkerBudget | None]) -> int:
    """Place the jobs of a lane, oldest first, until one finds no room; answer how many."""
    placed = 0
    while (job := lane.head()) and (worker := choose(job)):
        backlog.take(job.job_id)
        worker.place(job)
        placed += 1
    return placed


def _head_order(lane: Lane) -> tuple[float, int, str]:
    head = lane.head()
    assert head is not None, "a lane in the index holds a job"
    return (*head.order, lane.name.revision or "")
