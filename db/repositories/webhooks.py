"""The outbox: webhooks claimed by a relay that renews its lease, and finished only under their claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from db.records import Delivery, DeliveryRow
from db.repositories.endings import WEBHOOKS_CHANNEL
from db.repositories.results import fetch_rows, to_result

WINDOW_FACTOR: Final = 10
"""How far past its limit, shared by the tenants, a claim looks for other hosts when one host has a tenant's
oldest webhooks."""

MAX_TENANTS: Final = 1000
"""How many tenants one claim looks at; the next one goes on behind them."""

MAX_ERROR_CHARS: Final = 2000

HAS_UNCLAIMED = text("""
    SELECT EXISTS (SELECT FROM webhook_deliveries WHERE state = 'pending' AND relay IS NULL)
""")
"""Whether any webhook waits for a relay, due or not: for `Database.look`."""

# From one tenant to the next by the index: however many webhooks of one tenant wait, they cost nothing here.
_TENANTS = text("""
    WITH RECURSIVE turn AS (
        (SELECT tenant, next_at, 1 AS nth FROM webhook_deliveries
            WHERE state = 'pending' AND relay IS NULL AND tenant > :after ORDER BY tenant, next_at LIMIT 1)
        UNION ALL
        SELECT following.tenant, following.next_at, turn.nth + 1 FROM turn CROSS JOIN LATERAL (
            SELECT tenant, next_at FROM webhook_deliveries
            WHERE state = 'pending' AND relay IS NULL AND tenant > turn.tenant
            ORDER BY tenant, next_at LIMIT 1
        ) following
        WHERE turn.nth < :max_tenants
    )
    SELECT tenant, next_at <= now() AS is_due FROM turn ORDER BY nth
""")

# Arrays, as in retention: in a join the planner may look for all that is due once for each delivery.
_CLAIM = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM (
            SELECT found.id, found.of_tenant, turn.nth,
                row_number() OVER (PARTITION BY found.host ORDER BY found.of_tenant, turn.nth) AS of_host
            FROM unnest(CAST(:tenants AS text[])) WITH ORDINALITY AS turn(tenant, nth)
            CROSS JOIN LATERAL (
                SELECT id, host, row_number() OVER (ORDER BY next_at) AS of_tenant FROM (
                    SELECT id, host, next_at,
                        row_number() OVER (PARTITION BY host ORDER BY next_at) AS of_tenant_and_host
                    FROM (
                        SELECT id, host, next_at FROM webhook_deliveries
                        WHERE state = 'pending' AND relay IS NULL
                            AND tenant = turn.tenant AND next_at <= now()
                            AND host <> ALL(CAST(:exclude_hosts AS text[]))
                        ORDER BY next_at LIMIT :window
                    ) oldest
                ) of_one
                WHERE of_tenant_and_host <= :per_tenant_and_host
            ) found
        ) of_all
        WHERE of_host <= :per_host
        ORDER BY of_tenant, nth LIMIT :limit
    ), chosen AS MATERIALIZED (
        SELECT d.id FROM webhook_deliveries d
        WHERE d.id = ANY(ARRAY(SELECT id FROM due))
            AND d.state = 'pending' AND d.relay IS NULL AND d.next_at <= now()
            AND EXISTS (SELECT FROM webhook_relays WHERE incarnation = :relay AND expires_at > now())
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries d SET claim = d.claim + 1, tries = d.tries + 1, relay = :relay
    WHERE d.id = ANY(ARRAY(SELECT id FROM chosen)) AND d.state = 'pending'
    RETURNING d.id, d.job_id, d.url, d.host, d.tenant, d.event_type, d.claim, d.tries, d.created_at
""")

_RENEW = text("""
    INSERT INTO webhook_relays (incarnation, expires_at)
    VALUES (:relay, now() + make_interval(secs => :lease_s))
    ON CONFLICT (incarnation) DO UPDATE SET expires_at = excluded.expires_at
""")

# Whose relay lives is left alone. A claim of a try that nobody saw the end of counts.
_FREE = text("""
    WITH left_behind AS MATERIALIZED (
        SELECT id FROM webhook_deliveries d
        WHERE relay IS NOT NULL AND NOT EXISTS (
            SELECT FROM webhook_relays r WHERE r.incarnation = d.relay AND r.expires_at > now()
        )
        ORDER BY id FOR UPDATE SKIP LOCKED
    )
    UPDATE webhook_deliveries d SET relay = NULL, claim = d.claim + 1
    FROM left_behind WHERE d.id = left_behind.id
""")

_FORGET = text("DELETE FROM webhook_relays WHERE expires_at < now() - interval '1 hour'")

_RETIRE = text("DELETE FROM webhook_relays WHERE incarnation = :relay")

_FREE_UNHELD = text("""
    UPDATE webhook_deliveries SET relay = NULL, claim = claim + 1
    WHERE relay = :relay AND id <> ALL(CAST(:held AS uuid[]))
""")

_DELIVERED = text("""
    UPDATE webhook_deliveries
    SET state = 'delivered', status = :status, error = NULL, relay = NULL, ended_at = now()
    WHERE id = :id AND claim = :claim AND state = 'pending' RETURNING id
""")

_RETRY = text("""
    UPDATE webhook_deliveries
    SET next_at = now() + make_interval(secs => :in_s), claim = claim + 1, relay = NULL, status = :status,
        error = :error
    WHERE id = :id AND claim = :claim AND state = 'pending' RETURNING id
""")

_RELEASE = text("""
    UPDATE webhook_deliveries d
    SET next_at = now() + make_interval(secs => back.in_s), claim = d.claim + 1, relay = NULL,
        tries = d.tries - 1
    FROM unnest(CAST(:ids AS uuid[]), CAST(:claims AS int[]), CAST(:in_s AS float8[]))
        AS back(id, claim, in_s)
    WHERE d.id = back.id AND d.claim = back.claim AND d.state = 'pending' AND d.relay IS NOT NULL
    RETURNING d.id
""")

_DEAD = text("""
    UPDATE webhook_deliveries
    SET state = 'dead', status = :status, error = :error, relay = NULL, ended_at = now()
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

_TELL = text(f"SELECT pg_notify('{WEBHOOKS_CHANNEL}', '')")

_COUNTS = text("SELECT state, count(*) AS deliveries FROM webhook_deliveries GROUP BY state")

_RECENT = text("""
    SELECT id, job_id, tenant, url, event_type, state, tries, status, error, created_at
    FROM webhook_deliveries WHERE CAST(:state AS text) IS NULL OR state = :state
    ORDER BY created_at DESC, id LIMIT :limit
""")


class TenantsTurn(NamedTuple):
    """Some tenants, one after the other, of whose webhooks no relay has all."""

    due: list[str]
    """Those with a webhook that is due."""
    after: str
    """The last one looked at; empty if there are no more behind it."""


class WebhookRepository:
    """Webhooks on their way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tenants(self, after: str = "", max_tenants: int = MAX_TENANTS) -> TenantsTurn:
        """Look at the tenants with unclaimed webhooks from behind `after` on."""
        rows = self._connection.execute(_TENANTS, {"after": after, "max_tenants": max_tenants}).all()
        due = [row.tenant for row in rows if row.is_due]
        return TenantsTurn(due, rows[-1].tenant if len(rows) >= max_tenants else "")

    def claim(
        self,
        relay: UUID,
        limit: int,
        tenants: Sequence[str],
        exclude_hosts: Sequence[str] = (),
        per_host: int | None = None,
        per_tenant_and_host: int | None = None,
    ) -> list[Delivery]:
        """Claim due webhooks: one of each tenant in the order given, the longest due, then another of each...

        At most `per_host` of one host and, of these, `per_tenant_and_host` of one tenant. The claims hold as
        long as the relay's lease; without one there are none. A claim counts as a try: a webhook that kills
        its relay is not tried forever.
        """
        claimed = self._connection.execute(
            _CLAIM,
            {
                "relay": relay,
                "limit": limit,
                "tenants": list(tenants),
                "exclude_hosts": list(exclude_hosts),
                "per_host": limit if per_host is None else per_host,
                "per_tenant_and_host": limit if per_tenant_and_host is None else per_tenant_and_host,
                "window": WINDOW_FACTOR * max(limit // max(len(tenants), 1), 1),
            },
        ).all()
        jobs = {row.job_id: row for row in fetch_rows(self._connection, [row.job_id for row in claimed])}
        return [_to_delivery(row, jobs[row.job_id]) for row in claimed if row.job_id in jobs]

    def renew(self, relay: UUID, lease_s: float) -> int:
        """Hold on to all claims of a relay for so long; frees those whose relay is gone, and counts them."""
        self._connection.execute(_RENEW, {"relay": relay, "lease_s": lease_s})
        freed = self._connection.execute(_FREE).rowcount
        self._connection.execute(_FORGET)
        return freed

    def retire(self, relay: UUID) -> None:
        """End a relay's lease; whatever it still holds comes free."""
        self._connection.execute(_RETIRE, {"relay": relay})
        self._connection.execute(_FREE)

    def free_unheld(self, relay: UUID, held: Sequence[UUID]) -> int:
        """Free what a relay has claimed without knowing, as when the answer to a claim was lost."""
        return self._connection.execute(_FREE_UNHELD, {"relay": relay, "held": list(held)}).rowcount

    def delivered(self, id: UUID, claim: int, status: int) -> bool:  # noqa: A002
        """End a webhook that was accepted; False if another holds it now."""
        return self._guarded(_DELIVERED, {"id": id, "claim": claim, "status": status})

    def retry(self, id: UUID, claim: int, in_s: float, status: int | None, error: str) -> bool:  # noqa: A002
        """Try again after a while; False if another holds it now."""
        values = {"id": id, "claim": claim, "in_s": in_s, "status": status, "error": error[:MAX_ERROR_CHARS]}
        return self._guarded(_RETRY, values)

    def release(self, claims: Sequence[tuple[UUID, int, float]]) -> set[UUID]:
        """Give claims (id, claim, seconds until it may be claimed again) back unused and uncounted.

        Returns the ids of those that were still ours.
        """
        values = {
            "ids": [id_ for id_, _, _ in claims],
            "claims": [claim for _, claim, _ in claims],
            "in_s": [in_s for _, _, in_s in claims],
        }
        return set(self._connection.execute(_RELEASE, values).scalars())

    def dead(self, id: UUID, claim: int, status: int | None, error: str) -> bool:  # noqa: A002
        """Give up on a webhook, until a person replays it; False if another holds it now."""
        values = {"id": id, "claim": claim, "status": status, "error": error[:MAX_ERROR_CHARS]}
        return self._guarded(_DEAD, values)

    def replay(self, ids: Sequence[UUID] | None = None) -> int:
        """Send dead webhooks again from the first try, all of them or some; returns how many."""
        values = {"ids": list(ids or ()), "all": ids is None}
        replayed = self._connection.execute(_REPLAY, values).rowcount
        if replayed:
            self._connection.execute(_TELL)
        return replayed

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
