"""Retention: what has ended long ago leaves, a bounded batch in each transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

from db.records import DeletedBatch

# A delivery that is pending, or that somebody is changing now (a replay makes a dead one pending again),
# keeps its job. Terminal rows of `jobs` never change, so they need no lock.
# OFFSET 0 and the arrays have every table read by its index: the planner would rather hash all deliveries.
_DELETE_JOBS = text("""
    WITH old AS MATERIALIZED (
        SELECT job_id, ended_at, has_callback FROM jobs
        WHERE pool = :pool AND ended_at < now() - make_interval(secs => :older_than_s)
            AND ended_at > coalesce(CAST(:after AS timestamptz), '-infinity')
        ORDER BY ended_at FETCH FIRST (CAST(:limit AS bigint)) ROWS WITH TIES
    ), announced AS MATERIALIZED (
        SELECT old.job_id, d.id FROM old LEFT JOIN LATERAL (
            SELECT id FROM webhook_deliveries w WHERE w.job_id = old.job_id AND old.has_callback OFFSET 0
        ) d ON true
    ), settled AS MATERIALIZED (
        SELECT id, job_id FROM webhook_deliveries
        WHERE id = ANY(ARRAY(SELECT id FROM announced WHERE id IS NOT NULL)) AND state <> 'pending'
        ORDER BY id FOR UPDATE SKIP LOCKED
    ), leaving AS MATERIALIZED (
        SELECT job_id FROM announced WHERE id IS NULL UNION ALL SELECT job_id FROM settled
    ), deliveries AS (
        DELETE FROM webhook_deliveries WHERE id = ANY(ARRAY(SELECT id FROM settled))
    ), inputs AS (
        DELETE FROM job_inputs WHERE job_id = ANY(ARRAY(SELECT job_id FROM leaving))
    ), outputs AS (
        DELETE FROM job_outputs WHERE job_id = ANY(ARRAY(SELECT job_id FROM leaving))
    ), tries AS (
        DELETE FROM attempts WHERE job_id = ANY(ARRAY(SELECT job_id FROM leaving))
    ), deleted AS (
        DELETE FROM jobs WHERE job_id = ANY(ARRAY(SELECT job_id FROM leaving)) RETURNING job_id
    )
    SELECT (SELECT count(*) FROM old) AS examined, (SELECT count(*) FROM deleted) AS deleted,
        (SELECT max(ended_at) FROM old) AS reached
""")

# Whoever repeats a submission in this moment waits for the row, or is waited for: it stays or is taken anew.
_DELETE_KEYS = text("""
    WITH old AS MATERIALIZED (
        SELECT job_id, created_at FROM job_keys
        WHERE (pool = :pool OR pool IS NULL) AND created_at < now() - make_interval(secs => :older_than_s)
            AND created_at > coalesce(CAST(:after AS timestamptz), '-infinity')
        ORDER BY created_at FETCH FIRST (CAST(:limit AS bigint)) ROWS WITH TIES
    ), looked_up AS MATERIALIZED (
        SELECT old.job_id, found.job_id IS NULL AS has_left FROM old LEFT JOIN LATERAL (
            SELECT job_id FROM jobs j WHERE j.job_id = old.job_id OFFSET 0
        ) found ON true
    ), deleted AS (
        DELETE FROM job_keys WHERE job_id = ANY(ARRAY(SELECT job_id FROM looked_up WHERE has_left))
        RETURNING job_id
    )
    SELECT (SELECT count(*) FROM old) AS examined, (SELECT count(*) FROM deleted) AS deleted,
        (SELECT max(created_at) FROM old) AS reached
""")

_DELETE_REJECTS = text("""
    DELETE FROM intake_rejects WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM intake_rejects
        WHERE pool = :pool AND created_at < now() - make_interval(secs => :older_than_s)
        ORDER BY created_at LIMIT :limit))
""")


class RetentionRepository:
    """Deletes the oldest first. Keys outlive their jobs, and usage stays."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def delete_jobs(
        self, pool: str, older_than_s: float, limit: int, after: datetime | None = None
    ) -> DeletedBatch:
        """Delete jobs that ended before, with their inputs, outputs, attempts and deliveries.

        Looks at about `limit` of those that ended later than `after`: all that ended at one instant are one.
        Those with a pending delivery stay, so go on from `reached` until fewer than `limit` were there.
        """
        row = self._connection.execute(
            _DELETE_JOBS, {"pool": pool, "older_than_s": older_than_s, "after": after, "limit": limit}
        ).one()
        return DeletedBatch(row.examined, row.deleted, row.reached)

    def delete_keys(
        self, pool: str, older_than_s: float, limit: int, after: datetime | None = None
    ) -> DeletedBatch:
        """Delete keys taken before, but for those whose job is still there; goes on as `delete_jobs` does.

        Keys of releases before name no pool: whichever leader comes first deletes them.
        """
        row = self._connection.execute(
            _DELETE_KEYS, {"pool": pool, "older_than_s": older_than_s, "after": after, "limit": limit}
        ).one()
        return DeletedBatch(row.examined, row.deleted, row.reached)

    def delete_rejects(self, pool: str, older_than_s: float, limit: int) -> int:
        """Delete stream entries put aside before; returns how many."""
        values = {"pool": pool, "older_than_s": older_than_s, "limit": limit}
        return self._connection.execute(_DELETE_REJECTS, values).rowcount
