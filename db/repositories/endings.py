"""What every end of a job leaves behind: its error message, its webhook and its result to announce."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from db.arrays import array_literal
from db.records import FinishedJob
from db.repositories.results import fetch_finished

_LOCK = text("SELECT job_id FROM jobs WHERE job_id = ANY(CAST(:ids AS uuid[])) ORDER BY job_id FOR UPDATE")

_MESSAGES = text("""
    INSERT INTO job_outputs (job_id, error_message)
    SELECT job_id, message FROM unnest(CAST(:ids AS uuid[]), CAST(:messages AS text[])) AS m(job_id, message)
    ON CONFLICT (job_id) DO NOTHING
""")

WEBHOOKS_CHANNEL: Final = "lorayard_webhooks"
"""Where a transaction that leaves a webhook to be sent tells so, for relays that listen."""

_OUTBOX = text(f"""
    WITH written AS (
        INSERT INTO webhook_deliveries (job_id, tenant, url, host, event_type)
        SELECT j.job_id, j.tenant, i.callback_url, i.callback_host, 'job.' || j.state
        FROM jobs j JOIN job_inputs i ON i.job_id = j.job_id
        WHERE j.job_id = ANY(CAST(:ids AS uuid[])) AND j.has_callback AND j.ended_at IS NOT NULL
        ON CONFLICT (job_id) DO NOTHING
        RETURNING job_id
    )
    SELECT pg_notify('{WEBHOOKS_CHANNEL}', '') FROM (SELECT FROM written LIMIT 1) AS one
""")  # noqa: S608


def lock_jobs(connection: Connection, job_ids: Collection[UUID]) -> None:
    """Lock rows in one order for all, before a statement that reads `cancellations` as well.

    The statement after this one has a fresh snapshot, so it cannot miss a cancel that held the row.
    """
    connection.execute(_LOCK, {"ids": array_literal(sorted(job_ids))})


def write_endings(
    connection: Connection, job_ids: Sequence[UUID], messages: Sequence[str] = ()
) -> list[FinishedJob]:
    """Write messages and webhooks of jobs that this transaction has just ended; answer their results.

    `messages` is empty, or one for each job.
    """
    if not job_ids:
        return []
    if messages:
        connection.execute(_MESSAGES, {"ids": list(job_ids), "messages": list(messages)})
    write_outbox(connection, job_ids)
    return fetch_finished(connection, job_ids)


def write_outbox(connection: Connection, job_ids: Sequence[UUID]) -> None:
    """Write the webhooks that ended jobs asked for; others among the ids are passed over."""
    connection.execute(_OUTBOX, {"ids": array_literal(job_ids)})
