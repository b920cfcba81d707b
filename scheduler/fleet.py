"""All workers as the leader sees them, kept true by the ledger and by what the workers tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from db.records import LeasedRow, WorkerRow
from scheduler.item_failures import ItemFailures
from scheduler.policies import FleetOutlook, JobPace, WorkerView
from scheduler.store_failures import StoreFailures
from scheduler.worker_state import Outstanding, WorkerState

WORKER_PARTS: Final = ("worker_events", "worker_roll", "worker_view", "worker_hearing", "worker_dispatch")
"""Where what fails is put down to a worker: one that is put aside in any of them is not planned."""

logger = structlog.get_logger(__name__)


class Fleet:
    """Mutable: the workers of one term."""

    def __init__(
        self,
        items: ItemFailures,
        failures: StoreFailures,
        *,
        max_model_len: int,
        overcommit_s: float,
        max_workers: int | None = None,
    ) -> None:
        """`failures` is what the workers' stores could not give, which they are not asked for."""
        self._max_workers = max_workers
        self._items = items
        self._failures = failures
        self._max_model_len = max_model_len
        self._overcommit_s = overcommit_s
        self._workers: dict[str, WorkerState] = {}
        self.pace = JobPace()
        self.output_pace = JobPace()
        self.has_strangers = False
        """Somebody unknown has reported: look into the ledger soon."""

    @property
    def has_outstanding(self) -> bool:
        """Whether any worker has a job in hand or on its way."""
        return any(worker.outstanding for worker in self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, incarnation: str) -> WorkerState | None:
        """Find a worker; one that is not known is looked for in the ledger at the next reap."""
        worker = self._workers.get(incarnation)
        self.has_strangers |= worker is None
        return worker

    def find(self, incarnation: str) -> WorkerState | None:
        """Find a worker, and think nothing of it if it is not known."""
        return self._workers.get(incarnation)

    def take_roll(self, ready: Sequence[WorkerRow]) -> None:
        """Note which workers may be given jobs; all others are given none."""
        self.has_strangers = False
        names = {row.incarnation for row in ready}
        for worker in self._workers.values():
            worker.is_ready = worker.incarnation in names
        for row in ready:
            self._items.attempt("worker_roll", row.incarnation, partial(self._take_in, row))

    def _take_in(self, row: WorkerRow) -> None:
        if row.incarnation not in self._workers:
            self._workers[row.incarnation] = WorkerState(
                row.incarnation,
                row.hostname,
                row.limits,
                row.store,
                row.start_s,
                pace=self.pace,
                output_pace=self.output_pace,
            )
            logger.info("worker.joined", incarnation=row.incarnation, hostname=row.hostname)
        self._workers[row.incarnation].note_canary(row.canary)

    def rebuild(self, ready: Sequence[WorkerRow], leased: Iterable[LeasedRow], now: float) -> None:
        """Start over from the ledger; what workers told of themselves stays."""
        self.take_roll(ready)
        for worker in self._workers.values():
            worker.clear()
            worker.hearing.begin(now)
        for row in leased:
            if (holder := self._workers.get(row.incarnation)) is not None:
                give = partial(self._give_back_to, holder, row, now)
                self._items.attempt("job_leased", str(row.job_id), give)

    def _give_back_to(self, holder: WorkerState, row: LeasedRow, now: float) -> None:
        holder.give(row.job_id, self.outstanding(row, now - max(0.0, row.leased_s)))

    def excuse_standstill(self, now: float) -> None:
        """Hold against no worker what it has not listed so far: the leader has read no lists."""
        for worker in self._workers.values():
            worker.hearing.begin_after_standstill(now)

    def outstanding(self, row: LeasedRow, dispatched_at: float) -> Outstanding:
        """Make the record of a job that the ledger has in a worker's hand."""
        return Outstanding(
            attempt=row.attempt,
            revision=row.revision,
            tokens=min(row.est_tokens + row.max_tokens, self._max_model_len),
            is_suspect=row.group is not None,
            dispatched_at=dispatched_at,
            is_excused=True,
        )

    def views(self, now: float) -> list[WorkerView]:
        """Show the policies every worker that may be given jobs."""
        views: list[WorkerView] = []
        for worker in self._workers.values():
            if worker.is_ready and not worker.is_draining and not worker.hearing.is_deaf:
                show = partial(self._show, worker, now, views)
                self._items.attempt("worker_view", worker.incarnation, show)
        return [view for view in views if not self._is_resting(view.incarnation)]

    def _is_resting(self, incarnation: str) -> bool:
        return any(self._items.is_resting(part, incarnation) for part in WORKER_PARTS)

    def _show(self, worker: WorkerState, now: float, views: list[WorkerView]) -> None:
        view = worker.view(
            now,
            max_model_len=self._max_model_len,
            overcommit_s=self._overcommit_s,
            cooling=self._failures.cooling(worker.store, now),
        )
        views.append(view)

    def ready(self) -> list[WorkerState]:
        """List the workers that are in service."""
        return [worker for worker in self._workers.values() if worker.is_ready]

    def able_to_load(self, rank: int) -> list[WorkerState]:
        """List the workers that would read an adapter of this rank if they were given a job of it."""
        workers = [worker for worker in self._workers.values() if worker.can_load(rank)]
        return sorted(workers, key=lambda worker: worker.incarnation)

    def unready(self) -> list[str]:
        """List the workers that get no more jobs: they may have left."""
        return [name for name, worker in self._workers.items() if not worker.is_ready]

    def jobs_of(self, task_ids: Collection[UUID]) -> list[UUID]:
        """Name the jobs that Celery's ids mean: those in hand of a micro-batch, or else the id itself."""
        if not task_ids:
            return []
        jobs: dict[UUID, list[UUID]] = {}
        for worker in self._workers.values():
            for job_id, job in worker.outstanding.items():
                if job.batch_id is not None:
                    jobs.setdefault(job.batch_id, []).append(job_id)
        return [job_id for task_id in task_ids for job_id in jobs.get(task_id, (task_id,))]

    def is_on_its_way(self, job_id: UUID) -> bool:
        """Whether a job was sent to a worker that has not listed it yet."""
        found = (worker.outstanding.get(job_id) for worker in self._workers.values())
        return any(job is not None and not job.was_listed for job in found)

    def outlook(self) -> FleetOutlook:
        """Tell what a job with a deadline can hope for: the fastest starts that have been seen lately.

        So long as no worker has said how long its start took, a further one may come at once.
        """
        worker_starts = [one.start_s for one in self._workers.values() if one.start_s is not None]
        starts = [one.fastest_start_s for one in self.ready() if one.fastest_start_s is not None]
        return FleetOutlook(
            first_token_s=min(starts, default=0.0),
            output_token_s=self.output_pace.token_s,
            num_workers=len(self.ready()),
            max_workers=self._max_workers,
            worker_start_s=min(worker_starts, default=0.0),
        )

    def outstanding_jobs(self) -> set[UUID]:
        """Name the jobs in all workers' hands."""
        return {job_id for worker in self._workers.values() for job_id in worker.outstanding}

    def outstanding_job(self, job_id: UUID) -> Outstanding | None:
        """Find a job in some worker's hand."""
        found = (worker.outstanding.get(job_id) for worker in self._workers.values())
        return next((job for job in found if job is not None), None)

    def drop(self, incarnation: str) -> WorkerState | None:
        """Forget a worker that has left or is lost."""
        return self._workers.pop(incarnation, None)

    @property
    def num_outstanding(self) -> int:
        """Count the jobs in workers' hands."""
        return sum(len(worker.outstanding) for worker in self._workers.values())

    def tokens_per_s(self) -> float | None:
        """Tell how many tokens all workers do in a second; None if no job has ended, or none is running."""
        return self.pace.of(self.num_outstanding)
