"""Feeds the backlog in memory from the ledger: by a cursor for what is new, by id for what comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from db.records import PendingRow
from db.repositories.backlog import BacklogRepository
from db.repositories.jobs import JobRepository
from lorayard.contract.job import PRIORITIES
from scheduler.catalogue import Catalogue
from scheduler.instructions import Instructions
from scheduler.leader_context import LeaderContext
from scheduler.policies import Backlog, Fairness, PendingJob, PolicyConfig

WINDOW_JOBS: Final = 2000
MAX_JOBS_IN_MEMORY: Final = 200_000
"""About 130 MB of headers (`benchmarks.decisions`); the rest waits in the ledger until these have gone."""

logger = structlog.get_logger(__name__)


class QueueFeed:
    """Mutable: the backlog, and how far the ledger has been read.

    Admissions of a pool commit in the order of their sequence, because each holds its leader's term; so no
    job can appear behind the cursor but one that comes back from a worker.
    """

    def __init__(
        self,
        context: LeaderContext,
        catalogue: Catalogue,
        instructions: Instructions,
        clock: Callable[[], float],
        policy: PolicyConfig | None = None,
    ) -> None:
        self._policy = policy or PolicyConfig()
        self._instructions = instructions
        self._heeded = instructions.pauses
        self._context = context
        self._catalogue = catalogue
        self._clock = clock
        self._cursor = 0
        self._failed: list[UUID] = []
        self._put_aside: list[UUID] = []
        self._is_short = False
        self._paused: dict[UUID, str] = {}
        """Queued jobs of paused tenants and adapters, each with its tenant: they are planned by nobody."""
        self.has_more = True
        """The ledger may hold queued jobs beyond the cursor."""
        self.fairness = Fairness(window=self._policy.grouping_window)
        self.backlog = Backlog(self._policy, self.fairness)

    def restart(self) -> None:
        """Forget everything and read the ledger from the start."""
        self._cursor, self._is_short, self.has_more = 0, False, True
        self._heeded = self._instructions.pauses
        self._paused.clear()
        outlook = self.backlog.outlook
        self.backlog = Backlog(self._policy, self.fairness)
        self.backlog.outlook = outlook

    def __contains__(self, job_id: UUID) -> bool:
        return job_id in self.backlog or job_id in self._paused

    @property
    def is_plannable(self) -> bool:
        """Whether jobs may be given to workers: the pool is not paused, and what else is, is set apart."""
        pauses = self._instructions.pauses
        return not pauses.pool and pauses.sets_apart_as(self._heeded)

    def take(self, job_id: UUID) -> None:
        """Let a job wait no more, because it has ended."""
        self.backlog.take(job_id)
        self._paused.pop(job_id, None)

    def fill(self) -> None:
        """Read the next window of queued jobs, if there may be one and there is room.

        All are read anew if others than before are paused.
        """
        if not self._instructions.pauses.sets_apart_as(self._heeded):
            self.restart()
        self.retry_failed()
        if not self.has_more or len(self.backlog) >= MAX_JOBS_IN_MEMORY:
            return
        pool, cursor = self._context.pool, self._cursor
        rows = self._context.transact(
            lambda connection: BacklogRepository(connection).queued_after(pool, cursor, WINDOW_JOBS)
        )
        self.has_more = len(rows) == WINDOW_JOBS
        if rows:
            self._cursor = rows[-1].admit_seq
        self._add(rows)

    def verify(self) -> None:
        """Compare with the ledger's count, and read all anew if jobs are missing here at two looks.

        Jobs come back by what workers say of them, and a word can be lost; at one look it may be on its way.
        """
        if self.has_more:
            return
        num_missing = self.depth_in_ledger() - self._depth_here()
        if num_missing > 0 and self._is_short:
            logger.warning("backlog.short", missing=num_missing)
            self.restart()
            return
        self._is_short = num_missing > 0

    def put_back(self, job_ids: Sequence[UUID]) -> int:
        """Let jobs wait again that the ledger has queued; returns how many did not wait already."""
        if not job_ids:
            return 0
        rows = self._context.transact(lambda connection: BacklogRepository(connection).pending(job_ids))
        # A job past its deadline is about to be ended; planning it again and again would get nowhere.
        return self._add([row for row in rows if row.deadline_in_s is None or row.deadline_in_s > 0])

    def depth(self) -> int:
        """Count the queued jobs, those beyond the cursor included."""
        return self.depth_in_ledger() if self.has_more else self._depth_here()

    def depths(self, tenants: Collection[str]) -> dict[str, int]:
        """Count the queued jobs of some tenants, those beyond the cursor and paused ones included."""
        if not tenants:
            return {}
        if self.has_more:
            pool = self._context.pool
            found = self._context.transact(lambda c: BacklogRepository(c).queued_of(pool, tenants))
            return {tenant: found.get(tenant, 0) for tenant in tenants}
        paused = Counter(self._paused.values())
        return {tenant: self.backlog.order.queued(tenant).jobs + paused[tenant] for tenant in tenants}

    def _depth_here(self) -> int:
        return len(self.backlog) + len(self._paused)

    def depth_in_ledger(self) -> int:
        """Count the queued jobs in the ledger, where every admission is."""
        return self._context.transact(lambda connection: JobRepository(connection).depth(self._context.pool))

    def retry_failed(self) -> None:
        """Add jobs again at which this failed before, until they are put aside."""
        failed, self._failed = self._failed, []
        self.put_back(failed)

    def take_put_aside(self) -> list[UUID]:
        """Name the jobs that have been put aside since the last call: they are to be ended."""
        put_aside, self._put_aside = self._put_aside, []
        return put_aside

    def put_aside(self, job_id: UUID) -> None:
        """Plan a job no more, because the leader fails at it."""
        self._put_aside.append(job_id)

    def _add(self, rows: Sequence[PendingRow]) -> int:
        now = self._clock()
        before = self._depth_here()
        for row in rows:
            self._add_guarded(row, now)
        return self._depth_here() - before

    def _add_guarded(self, row: PendingRow, now: float) -> None:
        items, name = self._context.items, str(row.job_id)

        def put_aside(_: Exception) -> None:
            self.put_aside(row.job_id)

        is_in = items.attempt("queue", name, partial(self._add_one, row, now), put_aside)
        if not is_in and not items.is_resting("queue", name):
            self._failed.append(row.job_id)

    def _add_one(self, row: PendingRow, now: float) -> None:
        if self._instructions.pauses.holds(row.tenant, row.adapter):
            self._paused[row.job_id] = row.tenant
        else:
            self.backlog.add(self._pending(row, now))

    def _pending(self, row: PendingRow, now: float) -> PendingJob:
        return PendingJob(
            job_id=row.job_id,
            admit_seq=row.admit_seq,
            priority=PRIORITIES.index(row.priority),
            revision=row.revision,
            rank=self._catalogue.rank(row.revision),
            prompt_tokens=row.est_tokens,
            max_tokens=row.max_tokens,
            waiting_since=now - row.waited_s,
            attempt=row.attempt,
            group=row.group,
            request_bytes=row.request_bytes,
            tenant=row.tenant,
            deadline_at=None if row.deadline_in_s is None else now + row.deadline_in_s,
            adapter_bytes=self._catalogue.num_bytes(row.revision),
        )
