"""First in, first out: the head waits for room, and all others wait for the head. For comparison."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.policies.backlog import Backlog
from scheduler.policies.placement import best_worker, is_admitted
from scheduler.policies.suspect_turns import plan_lone_suspects, plan_suspects
from scheduler.policies.types import PendingJob, PlannedBatch, WorkerView
from scheduler.policies.worker_budget import WorkerBudget


def plan_fifo(backlog: Backlog, views: Sequence[WorkerView], now: float) -> list[PlannedBatch]:
    """Take jobs out of the backlog by age; what no worker here could run is passed over."""
    del now
    workers = [WorkerBudget(view, backlog.config.max_batch_jobs, backlog.fairness.lengths) for view in views]
    if not any(worker.is_open for worker in workers):
        return []
    sound = [worker for worker in workers if not worker.view.is_canary]
    plan_suspects(backlog, sound)
    aside: list[PendingJob] = []
    while (job := _head(backlog)) is not None and len(aside) < backlog.config.max_set_aside:
        if worker := best_worker(workers, job):
            backlog.plan(job)
            worker.place(job)
        elif is_admitted(workers, job):
            break
        else:
            aside.append(job)
            backlog.take(job.job_id)
    for job in aside:
        backlog.add(job)
    plan_lone_suspects(backlog, [worker for worker in workers if worker.view.is_canary], sound)
    return [worker.batch() for worker in workers if worker.planned]


def _head(backlog: Backlog) -> PendingJob | None:
    tenant = backlog.by_rank.first()
    lane = None if tenant is None else tenant.due.first()
    return None if lane is None else lane.head()
