"""The backlog as the policies see it: small headers of queued and running jobs, never a prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from db.records import LeasedRow, PendingRow, QueuedBlock, QueuedGroup
from lorayard.contract.job import PRIORITIES

# A scheduler of the release before strikes a job and knows of no groups.
_GROUP = "coalesce(j.suspect_group, CASE WHEN j.strikes > 0 THEN j.job_id END)"

_HEADER = f"""
    j.job_id, j.admit_seq, j.priority, j.tenant, j.adapter, j.revision, j.est_prompt_tokens, j.max_tokens,
    j.attempt, {_GROUP} AS suspect_group, j.request_bytes,
    extract(epoch FROM now() - j.submitted_at)::float8 AS waited_s,
    extract(epoch FROM j.deadline_at - now())::float8 AS deadline_in_s
"""

# One index range for each class, merged: the index is led by pool and class, and stops at the limit.
_QUEUED_AFTER = text(f"""
    SELECT lane.* FROM unnest(ARRAY[0, 1, 2]::smallint[]) AS class(priority)
    CROSS JOIN LATERAL (
        SELECT {_HEADER} FROM jobs j
        WHERE j.pool = :pool AND j.priority = class.priority AND j.state = 'queued' AND j.admit_seq > :cursor
        ORDER BY j.admit_seq LIMIT :limit
    ) AS lane
    ORDER BY lane.admit_seq LIMIT :limit
""")  # noqa: S608

# The same, of which the rows of some tenants are left out after so many have been looked at.
_QUEUED_AMONG = text(f"""
    WITH seen AS MATERIALIZED (
        SELECT lane.* FROM unnest(ARRAY[0, 1, 2]::smallint[]) AS class(priority)
        CROSS JOIN LATERAL (
            SELECT {_HEADER} FROM jobs j
            WHERE j.pool = :pool AND j.priority = class.priority AND j.state = 'queued'
                AND j.admit_seq > :cursor
            ORDER BY j.admit_seq LIMIT :look_at
        ) AS lane
        ORDER BY lane.admit_seq LIMIT :look_at
    )
    SELECT found.*, whole.num_seen, whole.reached
    FROM (SELECT count(*) AS num_seen, max(admit_seq) AS reached FROM seen) AS whole
    LEFT JOIN (
        SELECT * FROM seen
        WHERE (tenant = ANY(CAST(:tenants AS text[]))) = :are_wanted ORDER BY admit_seq LIMIT :limit
    ) AS found ON true
    ORDER BY found.admit_seq
""")  # noqa: S608

_PENDING = text(f"""
    SELECT {_HEADER} FROM jobs j
    WHERE j.job_id = ANY(CAST(:ids AS uuid[])) AND j.state = 'queued' ORDER BY j.admit_seq
""")  # noqa: S608

_TENANTS = text("SELECT DISTINCT tenant FROM jobs WHERE pool = :pool AND state = 'queued' ORDER BY tenant")

_LEASED = text(f"""
    SELECT job_id, attempt, incarnation, revision, tenant, adapter, est_prompt_tokens, max_tokens,
        {_GROUP} AS suspect_group, extract(epoch FROM now() - leased_at)::float8 AS leased_s
    FROM jobs j WHERE pool = :pool AND state = 'leased' ORDER BY admit_seq
""")  # noqa: S608

_OF_TENANTS = text("""
    SELECT tenant, count(*) AS jobs FROM jobs
    WHERE pool = :pool AND state = 'queued' AND tenant = ANY(CAST(:tenants AS text[])) GROUP BY tenant
""")

_GROUPS = text("""
    SELECT pool, tenant, adapter, count(*) FILTER (WHERE state = 'queued') AS queued,
        count(*) FILTER (WHERE state = 'leased') AS leased,
        extract(epoch FROM now() - min(submitted_at) FILTER (WHERE state = 'queued'))::float8 AS oldest_s
    FROM jobs WHERE state = 'queued' OR state = 'leased'
    GROUP BY pool, tenant, adapter ORDER BY pool, tenant, adapter NULLS FIRST
""")


class BacklogRepository:
    """What the leader rebuilds its picture from."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def queued_after(self, pool: str, cursor: int, limit: int) -> list[PendingRow]:
        """Read the next queued jobs after an `admit_seq`, in the order of admission over all classes."""
        rows = self._connection.execute(_QUEUED_AFTER, {"pool": pool, "cursor": cursor, "limit": limit}).all()
        return [_to_pending(row) for row in rows]

    def queued_among(
        self,
        pool: str,
        cursor: int,
        limit: int,
        *,
        look_at: int,
        tenants: Collection[str],
        are_wanted: bool,
    ) -> QueuedBlock:
        """Read queued jobs after an `admit_seq` that are of some tenants, or of none of these.

        At most `look_at` queued jobs of all tenants are looked at, of whom at most `limit` are returned.
        """
        found = self._connection.execute(
            _QUEUED_AMONG,
            {
                "pool": pool,
                "cursor": cursor,
                "limit": limit,
                "look_at": look_at,
                "tenants": sorted(tenants),
                "are_wanted": are_wanted,
            },
        ).all()
        num_seen, reached = found[0].num_seen, found[0].reached
        rows = [_to_pending(row) for row in found if row.job_id is not None]
        if len(rows) == limit:
            return QueuedBlock(rows, rows[-1].admit_seq, is_last=False)
        return QueuedBlock(rows, cursor if reached is None else reached, is_last=num_seen < look_at)

    def pending(self, job_ids: Sequence[UUID]) -> list[PendingRow]:
        """Read which of some jobs are queued: a requeued one keeps its `admit_seq`, behind any cursor."""
        return [_to_pending(row) for row in self._connection.execute(_PENDING, {"ids": list(job_ids)})]

    def waiting_tenants(self, pool: str) -> list[str]:
        """List the tenants with queued jobs."""
        return list(self._connection.execute(_TENANTS, {"pool": pool}).scalars())

    def leased(self, pool: str) -> list[LeasedRow]:
        """Read the jobs in workers' hands."""
        rows = self._connection.execute(_LEASED, {"pool": pool})
        return [
            LeasedRow(
                job_id=row.job_id,
                attempt=row.attempt,
                incarnation=row.incarnation,
                revision=row.revision,
                tenant=row.tenant,
                adapter=row.adapter,
                est_tokens=row.est_prompt_tokens,
                max_tokens=row.max_tokens,
                group=row.suspect_group,
                leased_s=row.leased_s,
            )
            for row in rows
        ]

    def queued_of(self, pool: str, tenants: Collection[str]) -> dict[str, int]:
        """Count the queued jobs of some tenants; those without any are left out."""
        found = self._connection.execute(_OF_TENANTS, {"pool": pool, "tenants": sorted(tenants)})
        return {row.tenant: row.jobs for row in found}

    def groups(self) -> list[QueuedGroup]:
        """Count the unfinished jobs of all pools by tenant and adapter; reads all of them, for people."""
        return [QueuedGroup(*row) for row in self._connection.execute(_GROUPS)]


def _to_pending(row: Row[Any]) -> PendingRow:
    return PendingRow(
        job_id=row.job_id,
        admit_seq=row.admit_seq,
        priority=PRIORITIES[row.priority],
        tenant=row.tenant,
        adapter=row.adapter,
        revision=row.revision,
        est_tokens=row.est_prompt_tokens,
        max_tokens=row.max_tokens,
        waited_s=row.waited_s,
        deadline_in_s=row.deadline_in_s,
        attempt=row.attempt,
        group=row.suspect_group,
        request_bytes=row.request_bytes,
    )
