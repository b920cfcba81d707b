"""Feeds the backlog in memory from the ledger: by a cursor for what is new, by id for what comes back.

Memory is bounded, and shared by dynamic thresholds (Choudhury and Hahne, "Dynamic Queue Length Thresholds for
Shared-Memory Packet Switches", IEEE/ACM ToN 6(2), 1998): a tenant may have as many jobs in it as are free. So
one that floods fills half of it, and whoever comes later finds room. What is left of a tenant in the ledger
is read once half of its jobs have gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from db.records import PendingRow, QueuedBlock
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
LOOK_AT_JOBS: Final = 20_000
"""Queued jobs that one read passes over for others'; so the leader's turn stays short."""

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
        self._num_paused: Counter[str] = Counter()
        self._left: dict[str, int] = {}
        """Tenants with jobs that found no room here: all up to this `admit_seq` did."""
        self.has_more = True
        """The ledger may hold queued jobs beyond the cursor."""
        self.fairness = Fairness(window=self._policy.grouping_window)
        self.backlog = Backlog(self._policy, self.fairness)

    def restart(self) -> None:
        """Forget everything and read the ledger from the start."""
        self._cursor, self._is_short, self.has_more = 0, False, True
        self._heeded = self._instructions.pauses
        self._paused.clear()
        self._num_paused.clear()
        self._left.clear()
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
        if (tenant := self._paused.pop(job_id, None)) is not None:
            self._num_paused[tenant] -= 1

    def fill(self) -> None:
        """Read the next window of queued jobs, if there may be one, and what was left of those with room.

        All are read anew if others than before are paused.
        """
        if not self._instructions.pauses.sets_apart_as(self._heeded):
            self.restart()
        self.retry_failed()
        if self.has_more and self._depth_here() < MAX_JOBS_IN_MEMORY:
            self._read_new()
        if again := [tenant for tenant in self._left if self._has_room(tenant)]:
            self._read_left(again)

    def _read_new(self) -> None:
        pool, cursor, left = self._context.pool, self._cursor, list(self._left)
        if left:
            block = self._read_among(cursor, left, are_wanted=False)
        else:
            rows = self._context.transact(
                lambda c: BacklogRepository(c).queued_after(pool, cursor, WINDOW_JOBS)
            )
            reached = rows[-1].admit_seq if rows else cursor
            block = QueuedBlock(rows, reached, is_last=len(rows) < WINDOW_JOBS)
        self.has_more, self._cursor = not block.is_last, block.reached
        self._add(self._fitting(block.rows))

    def _read_left(self, tenants: Sequence[str]) -> None:
        """Go on for some tenants from where the first of them was left."""
        block = self._read_among(min(self._left[tenant] for tenant in tenants), tenants, are_wanted=True)
        rows = [row for row in block.rows if row.admit_seq > self._left[row.tenant]]
        for tenant in tenants:
            self._left[tenant] = max(self._left[tenant], block.reached)
            if self._left[tenant] >= self._cursor or block.is_last:
                del self._left[tenant]
        self._add(self._fitting(rows))

    def _read_among(self, cursor: int, tenants: Sequence[str], *, are_wanted: bool) -> QueuedBlock:
        pool = self._context.pool
        return self._context.transact(
            lambda connection: BacklogRepository(connection).queued_among(
                pool, cursor, WINDOW_JOBS, look_at=LOOK_AT_JOBS, tenants=tenants, are_wanted=are_wanted
            )
        )

    def _fitting(self, rows: Sequence[PendingRow]) -> list[PendingRow]:
        """Choose the jobs that memory has room for, and note the tenants of the others."""
        num_here, num_of = self._depth_here(), Counter[str]()
        full: dict[str, int] = {}
        fitting = []
        for row in rows:
            num_of.setdefault(row.tenant, self._depth_of(row.tenant))
            if row.tenant not in full and num_of[row.tenant] < MAX_JOBS_IN_MEMORY - num_here:
                num_of[row.tenant] += 1
                num_here += 1
                fitting.append(row)
            else:
                full.setdefault(row.tenant, row.admit_seq - 1)
        self._left.update(full)
        return fitting

    def _has_room(self, tenant: str) -> bool:
        """Whether a tenant has at most half as many jobs here as it may have."""
        return 2 * self._depth_of(tenant) < MAX_JOBS_IN_MEMORY - self._depth_here()

    def verify(self) -> None:
        """Compare with the ledger's count, and read all anew if jobs are missing here at two looks.

        Jobs come back by what workers say of them, and a word can be lost; at one look it may be on its way.
        """
        if not self._is_whole:
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
        return self._depth_here() if self._is_whole else self.depth_in_ledger()

    def depths(self, tenants: Collection[str]) -> dict[str, int]:
        """Count the queued jobs of some tenants, those beyond the cursor and paused ones included."""
        if not tenants:
            return {}
        if not self._is_whole:
            pool = self._context.pool
            found = self._context.transact(lambda c: BacklogRepository(c).queued_of(pool, tenants))
            return {tenant: found.get(tenant, 0) for tenant in tenants}
        return {tenant: self._depth_of(tenant) for tenant in tenants}

    @property
    def _is_whole(self) -> bool:
        """Whether all queued jobs are here."""
        return not self.has_more and not self._left

    def _depth_of(self, tenant: str) -> int:
        return self.backlog.order.queued(tenant).jobs + self._num_paused[tenant]

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
            self._num_paused[row.tenant] += row.job_id not in self._paused
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
