"""Where suspects run: each group alone on an empty worker, on at most half of the workers at a time."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.policies.backlog import Backlog
from scheduler.policies.placement import is_admitted
from scheduler.policies.types import PendingJob
from scheduler.policies.worker_budget import WorkerBudget


def plan_suspects(backlog: Backlog, workers: Sequence[WorkerBudget]) -> None:
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
            _place(backlog, worker, group)
        worker.closed = True
        if not worker.planned:
            return  # it drains now; next round, or the one after, it is empty


def plan_lone_suspects(
    backlog: Backlog, canaries: Sequence[WorkerBudget], sound: Sequence[WorkerBudget]
) -> None:
    """Give each worker in doubt that got nothing else one suspect that no other could run."""
    for worker in canaries:
        for job in [job for group in backlog.suspects.in_order() for job in group]:
            if worker.is_empty and worker.fits(job) and not is_admitted(sound, job):
                _place(backlog, worker, [job])


def _place(backlog: Backlog, worker: WorkerBudget, group: Sequence[PendingJob]) -> None:
    """Place what fits of a group; the rest of it runs after these."""
    for job in group:
        if worker.fits(job):
            backlog.plan(job)
            worker.place(job)
