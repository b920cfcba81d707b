"""Keeps the tenants' counters the same in the ledger and in the leader's memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection

from db.records import LeasedRow, TenantServiceRow
from db.repositories.backlog import BacklogRepository
from db.repositories.tenants import TenantRepository
from scheduler.fleet import Fleet
from scheduler.leader_context import LeaderContext
from scheduler.policies import PendingJob, Standing, service_cost
from scheduler.queue_feed import QueueFeed

MAX_IDLE: Final = 1_000
"""Counters are kept for all tenants up to so many, and beyond that for those with jobs."""


@dataclass(slots=True)
class Shares:
    """Mutable: the counters of one term; raises DatabaseUnavailable and Deposed."""

    context: LeaderContext
    queue: QueueFeed
    fleet: Fleet
    _written: Mapping[str, Standing] = field(default_factory=dict)

    def restore(self, connection: Connection, leased: Sequence[LeasedRow]) -> None:
        """Count as the leader before did: by committed usage, the lifts it wrote, and what is leased."""
        tenants, pool = TenantRepository(connection), self.context.pool
        self.queue.fairness.reweigh(tenants.weights())
        self.queue.fairness.restore(
            {row.tenant: _standing(row) for row in tenants.service(pool)},
            [_header(row) for row in leased],
            BacklogRepository(connection).waiting_tenants(pool),
        )

    def arrive(self, connection: Connection, tenants: Collection[str]) -> None:
        """Lift tenants that have nothing waiting, in the transaction that admits their jobs.

        After it, `confirm`; without that it is written again with the next one.
        """
        fairness = self.queue.fairness
        if forgotten := [tenant for tenant in tenants if not fairness.knows(tenant)]:
            rows = TenantRepository(connection).service(self.context.pool, forgotten)
            fairness.remember({row.tenant: _standing(row) for row in rows})
        for tenant in sorted(tenants):
            if not self.queue.backlog.has_tenant(tenant):
                fairness.arrive(tenant)
        self._write(connection)

    def confirm(self) -> None:
        """Note that the last transaction was committed."""
        self.queue.fairness.note_written(self._written)

    def refresh(self) -> None:
        """Take over new weights, write what has changed, undo the charges of jobs that nobody has.

        If there are many tenants, those that have no job are forgotten until they come again.
        """
        weights = self.context.transact(lambda connection: TenantRepository(connection).weights())
        self.queue.fairness.reweigh(weights)
        if self.queue.fairness.changed():
            self.context.transact(self._write)
            self.confirm()
        self.queue.fairness.keep_charges(self.fleet.outstanding_jobs().__contains__)
        if self.queue.fairness.num_known > MAX_IDLE:
            pool = self.context.pool
            waiting = self.context.transact(lambda c: BacklogRepository(c).waiting_tenants(pool))
            self.queue.fairness.forget(waiting)

    def _write(self, connection: Connection) -> None:
        self._written = self.queue.fairness.changed()
        lifts = {tenant: (one.lift, one.weight) for tenant, one in self._written.items()}
        TenantRepository(connection).lift(self.context.pool, lifts)


def _standing(row: TenantServiceRow) -> Standing:
    return Standing(row.lift, service_cost(row.prompt_tokens, row.completion_tokens), row.weight)


def _header(row: LeasedRow) -> PendingJob:
    return PendingJob(
        job_id=row.job_id,
        admit_seq=0,
        priority=0,
        revision=row.revision,
        rank=0,
        prompt_tokens=row.est_tokens,
        max_tokens=row.max_tokens,
        waiting_since=0.0,
        attempt=row.attempt,
        tenant=row.tenant,
    )
