"""The outbox: webhooks claimed for a while, and finished only by whoever holds the claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Connection, text

from db.records import Delivery, DeliveryRow
from db.repositories.results import fetch_rows, to_result

WINDOW_FACTOR: Final = 10
"""How far past its limit a claim looks for other hosts, when one host has the oldest webhooks."""

MAX_ERROR_CHARS: Final = 2000

_CLAIM = text("""
    WITH window_ AS (
        SELECT id, host, next_at FROM webhook_deliveries
        WHERE state = 'pending' AND next_at <= now() AND host <> ALL(CAST(:exclude_hosts AS text[]))
        ORDER BY next_at LIMIT :window
    ), fair AS (
        SELECT id, row_number() OVER (PARTITION BY host ORDER BY next_at) AS nth FROM window_
    ), chosen AS MATERIALIZED (
        SELECT d.id FROM webhook_deliveries d JOIN fair f ON f.id = d.id
        WHERE f.nth <= :per_host AND d.state = 'pending' AND d.next_at <= now()
        ORDER BY d.next_at LIMIT :limit
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries d
    SET claim = d.claim + 1, tries = d.tries + 1, next_at = now() + make_interval(secs => :lease_s)
    FROM chosen WHERE d.id = chosen.id AND d.state = 'pending'
    RETURNING d.id, d.job_id, d.url, d.host, d.tenant, d.event_type, d.claim, d.tries, d.created_at
""")

_DELIVERED = text("""
    UPDATE webhook_deliveries
    SET state = 'delivered', status = :status, error = NULL, ended_at = now()
    WHERE id = :id AND claim = :claim AND state = 'pending' RETURNING id
""")

_RETRY = text("""
    UPDATE webhook_deliveries
    SET next_at = now() + make_interval(secs => :in_s), claim = claim + 1, status = :status, error = :error
    WHERE id = :id AND claim = :claim AND state = 'pending' RETURNING id
""")

_RELEASE = text("""
    UPDATE webhook_deliveries
    SET next_at = now() + make_interval(secs => :in_s), claim = claim + 1, tries = tries - 1
    WHERE id = :id AND claim = :claim AND state = 'pending' RETURNING id
""")

_DEAD = text("""
    UPDATE webhook_deliveries
    SET state = 'dead', status = :status, error = :error, ended_at = now()
    WHERE id = :id AND claim = :claim AND state = 'pending' RETURNING id
""")

_REPLAY = text("""
    WITH chosen AS MATERIALIZED (
        SELECT id FROM webhook_deliveries
        WHERE state = 'dead' AND (CAST(:all AS boolean) OR id = ANY(CAST(:ids AS uuid[])))
        ORDER BY id FOR UPDATE
    )
    UPDATE webhook_deliveries d
    SET state = 'pending', tries = 0, next_at = now(), ended_at = NULL
    FROM chosen WHERE d.id = chosen.id AND d.state = 'dead'
""")

_COUNTS = text("SELECT state, count(*) AS deliveries FROM webhook_deliveries GROUP BY state")

_RECENT = text("""
    SELECT id, job_id, tenant, url, event_type, state, tries, status, error, created_at
    FROM webhook_deliveries WHERE CAST(:state AS text) IS NULL OR state = :state
    ORDER BY created_at DESC, id LIMIT :limit
""")


class WebhookRepository:
    """Webhooks on their way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def claim(
        self, limit: int, lease_s: float, exclude_hosts: Sequence[str] = (), per_host: int | None = None
    ) -> list[Delivery]:
        """Claim due webhooks, the longest due first; after `lease_s` anyone may claim them again.

        A claim counts as a try, so that a webhook which kills its relay is not tried forever.
        """
        claimed = self._connection.execute(
            _CLAIM,
            {
                "limit": limit,
                "lease_s": lease_s,
                "exclude_hosts": list(exclude_hosts),
                "per_host": limit if per_host is None else per_host,
                "window": limit * WINDOW_FACTOR,
            },
        ).all()
        jobs = {row.job_id: row for row in fetch_rows(self._connection, [row.job_id for row in claimed])}
        return [_to_delivery(row, jobs[row.job_id]) for row in claimed if row.job_id in jobs]

    def delivered(self, id: UUID, claim: int, status: int) -> bool:  # noqa: A002
        """End a webhook that was accepted; False if another holds it now."""
        return self._guarded(_DELIVERED, {"id": id, "claim": claim, "status": status})

    def retry(self, id: UUID, claim: int, in_s: float, status: int | None, error: str) -> bool:  # noqa: A002
        """Try again after a while; False if another holds it now."""
        values = {"id": id, "claim": claim, "in_s": in_s, "status": status, "error": error[:MAX_ERROR_CHARS]}
        return self._guarded(_RETRY, values)

    def release(self, id: UUID, claim: int, in_s: float = 0.0) -> bool:  # noqa: A002
        """Give back a claim that was not used, uncounted; False if another holds it now."""
        return self._guarded(_RELEASE, {"id": id, "claim": claim, "in_s": in_s})

    def dead(self, id: UUID, claim: int, status: int | None, error: str) -> bool:  # noqa: A002
        """Give up on a webhook, until a person replays it; False if another holds it now."""
        values = {"id": id, "claim": claim, "status": status, "error": error[:MAX_ERROR_CHARS]}
        return self._guarded(_DEAD, values)

    def replay(self, ids: Sequence[UUID] | None = None) -> int:
        """Send dead webhooks again from the first try, all of them or some; returns how many."""
        values = {"ids": list(ids or ()), "all": ids is None}
        return self._connection.execute(_REPLAY, values).rowcount

    def counts(self) -> dict[str, int]:
        """Count the webhooks in each state."""
        rows = self._connection.execute(_COUNTS)
        return {"pending": 0, "delivered": 0, "dead": 0} | {row.state: row.deliveries for row in rows}

    def recent(
        self, limit: int = 20, state: Literal["pending", "delivered", "dead"] | None = None
    ) -> list[DeliveryRow]:
        """List webhooks, the newest first."""
        rows = self._connection.execute(_RECENT, {"limit": limit, "state": state})
        return [DeliveryRow(**row._mapping) for row in rows]  # noqa: SLF001

    def _guarded(self, statement: Any, values: dict[str, Any]) -> bool:
        return self._connection.execute(statement, values).one_or_none() is not None


def _to_delivery(row: Any, job: Any) -> Delivery:
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        url=row.url,
        host=row.host,
        tenant=row.tenant,
        event_type=row.event_type,
        claim=row.claim,
        tries=row.tries,
        created_at=row.created_at,
        ended_at=job.ended_at or row.created_at,
        result=to_result(job),
    )
