"""Plans and dispatches one round; a job or a worker at which that fails keeps no other from its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID

import structlog

from db.judge import explain
from scheduler.dispatch import Dispatched, Dispatcher
from scheduler.fleet import Fleet
from scheduler.item_failures import ItemFailures
from scheduler.outages import is_passing
from scheduler.policies import Backlog, PendingJob, PlannedBatch, WorkerView, plan
from scheduler.queue_feed import QueueFeed

MAX_CULPRITS: Final = 8
"""If planning fails with more jobs than that, each by itself, then they are not to blame."""

logger = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class Rounds:
    """Mutable: the rounds of one term; raises what `Dispatcher` does, and failures that no item explains."""

    items: ItemFailures
    queue: QueueFeed
    fleet: Fleet
    dispatcher: Dispatcher
    _is_careful: bool = False
    """Planning has failed, and the next time it does the jobs are kept to look for the one to blame."""
    _failed_last: dict[str, UUID] = field(default_factory=dict)

    def run(self, now: float) -> bool:
        """Dispatch what the workers have room for; False if nothing went out."""
        planned = self._plan(now)
        if not planned:
            return False
        try:
            return self._follow(self.dispatcher.dispatch(planned, self.fleet, now))
        except Exception as error:
            if is_passing(error):
                raise
            logger.warning("leader.dispatched_apart", workers=len(planned), error=explain(error))
        return sum(self._dispatch_apart(batch, now) for batch in planned) > 0

    def _follow(self, done: Dispatched) -> bool:
        for batch in done.batches:
            self._failed_last.pop(batch.incarnation, None)
            self.items.served("worker_dispatch", batch.incarnation)
            for job in batch.jobs if self.items.has_failures else ():
                self.items.served("dispatch", str(job.job_id))
        self.queue.put_back(done.passed_over)
        return bool(done.batches)

    def _dispatch_apart(self, batch: PlannedBatch, now: float) -> bool:
        """Dispatch one worker's jobs in ever smaller parts; those that fail alone wait, and are counted."""
        failed = self._failed_alone(batch, now)
        if len(failed) == len(batch.jobs) > 1:
            self.items.failed("worker_dispatch", batch.incarnation, failed[0][1])
        else:
            for job, error in failed:
                self._blame(batch.incarnation, job, error)
        self.queue.put_back([job.job_id for job, _ in failed])
        return len(failed) < len(batch.jobs)

    def _blame(self, incarnation: str, job: PendingJob, error: Exception) -> None:
        """Count a failure at a job, and at the worker if another job failed there just before."""
        if self._failed_last.get(incarnation, job.job_id) != job.job_id:
            self.items.failed("worker_dispatch", incarnation, error)
        self._failed_last[incarnation] = job.job_id
        self._fail_job(job, error)

    def _fail_job(self, job: PendingJob, error: Exception) -> None:
        self.items.failed("dispatch", str(job.job_id), error, lambda _: self.queue.put_aside(job.job_id))

    def _failed_alone(self, batch: PlannedBatch, now: float) -> list[tuple[PendingJob, Exception]]:
        try:
            self._follow(self.dispatcher.dispatch([batch], self.fleet, now))
        except Exception as error:
            if is_passing(error):
                raise
            if len(batch.jobs) == 1:
                return [(batch.jobs[0], error)]
        else:
            return []
        middle = len(batch.jobs) // 2
        halves = (batch.jobs[:middle], batch.jobs[middle:])
        return [
            failed
            for half in halves
            for failed in self._failed_alone(PlannedBatch(batch.incarnation, half), now)
        ]

    def _plan(self, now: float) -> list[PlannedBatch]:
        views = self.fleet.views(now)
        jobs = self.queue.backlog.jobs() if self._is_careful else []
        try:
            planned = plan(self.queue.backlog, views, now)
        except Exception as error:
            # A round that was not finished has taken jobs out.
            self.queue.restart()
            if self._is_careful and not self._blame_for_plan(jobs, views, now, error):
                raise
            logger.warning("leader.plan_failed", jobs=len(jobs), error=explain(error))
            self._is_careful = True
            return []
        if planned:
            self._is_careful = False
        return planned

    def _blame_for_plan(
        self, jobs: Sequence[PendingJob], views: Sequence[WorkerView], now: float, error: Exception
    ) -> bool:
        """Count the failure at the workers or the jobs that explain it; False if neither do."""

        def fails(some: Sequence[PendingJob], there: Sequence[WorkerView]) -> bool:
            backlog = Backlog(self.queue.backlog.config)
            for job in some:
                backlog.add(job)
            try:
                plan(backlog, there, now)
            except Exception:  # noqa: BLE001 - it is only asked whether it fails
                return True
            return False

        workers = [view.incarnation for view in views if fails(jobs, [view])]
        culprits = culprits_among(jobs, lambda some: fails(some, views), MAX_CULPRITS)
        if len(culprits) >= min(len(jobs), MAX_CULPRITS) > 1 or 0 < len(workers) < len(views):
            for incarnation in workers:
                self.items.failed("worker_view", incarnation, error)
            return bool(workers)
        for job in culprits:
            self._fail_job(job, error)
        return bool(culprits)


def culprits_among(items: Sequence[T], fails: Callable[[Sequence[T]], bool], limit: int) -> list[T]:
    """Find the items with which something fails although each stands alone, by halving; at most so many."""
    if limit <= 0 or not items or not fails(items):
        return []
    if len(items) == 1:
        return list(items)
    middle = len(items) // 2
    found = culprits_among(items[:middle], fails, limit)
    return found + culprits_among(items[middle:], fails, limit - len(found))
