"""Usage: deltas folded into hourly sums, and the sums read back for people."""

from __future__ import annotations

from typing import Final, Literal

from sqlalchemy import Connection, text

from db.records import UsageRow

COUNTERS: Final = (
    "jobs",
    "prompt_tokens",
    "completion_tokens",
    "device_ms",
    "queue_ms",
    "loads",
    "load_ms",
    "hits",
    "evictions",
    "failures",
    "wasted_device_ms",
)

_NAMES = ", ".join(COUNTERS)
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in COUNTERS)
_ADDED = ", ".join(f"{name} = u.{name} + excluded.{name}" for name in COUNTERS)

# Deleted and added in one statement: a delta is counted once, whoever folds and however often.
_FOLD = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT incarnation, seq, part FROM usage_deltas
        ORDER BY incarnation, seq, part LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), folded AS (
        DELETE FROM usage_deltas d USING chosen c
        WHERE d.incarnation = c.incarnation AND d.seq = c.seq AND d.part = c.part
        RETURNING d.*
    ), added AS (
        INSERT INTO adapter_usage AS u (pool, adapter, tenant, hour, {_NAMES})
        SELECT pool, adapter, tenant, date_trunc('hour', created_at), {_SUMS}
        FROM folded GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        ON CONFLICT (pool, adapter, tenant, hour) DO UPDATE SET {_ADDED}
    ), served AS (
        INSERT INTO tenant_service AS s (pool, tenant, prompt_tokens, completion_tokens)
        SELECT pool, tenant, sum(prompt_tokens), sum(completion_tokens)
        FROM folded GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (pool, tenant) DO UPDATE SET
            prompt_tokens = s.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = s.completion_tokens + excluded.completion_tokens
    )
    SELECT count(*) FROM folded
""")  # noqa: S608

_REPORTS = {
    by: text(f"""
        SELECT {by} AS name, {_SUMS} FROM (
            SELECT {by}, {_NAMES} FROM adapter_usage
            WHERE hour >= date_trunc('hour', now() - make_interval(secs => :since_s))
            UNION ALL
            SELECT {by}, {_NAMES} FROM usage_deltas
            WHERE created_at >= date_trunc('hour', now() - make_interval(secs => :since_s))
        ) AS used
        GROUP BY {by} ORDER BY sum(device_ms) DESC, {by}
    """)  # noqa: S608
    for by in ("adapter", "tenant")
}


class UsageRepository:
    """What adapters and tenants used."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fold(self, limit: int = 10_000) -> int:
        """Fold the oldest deltas into the sums; returns how many. Safe to run twice, and at once."""
        return int(self._connection.execute(_FOLD, {"limit": limit}).scalar_one())

    def report(self, by: Literal["adapter", "tenant"], since_s: float) -> list[UsageRow]:
        """Sum usage over whole hours back to `since_s` ago, deltas not yet folded included."""
        rows = self._connection.execute(_REPORTS[by], {"since_s": since_s})
        return [
            UsageRow(
                adapter=(row.name or None) if by == "adapter" else None,
                tenant=row.name if by == "tenant" else None,
                jobs=int(row.jobs),
                prompt_tokens=int(row.prompt_tokens),
                completion_tokens=int(row.completion_tokens),
                device_ms=row.device_ms,
                queue_ms=row.queue_ms,
                loads=int(row.loads),
                load_ms=row.load_ms,
                hits=int(row.hits),
                evictions=int(row.evictions),
                failures=int(row.failures),
                wasted_device_ms=row.wasted_device_ms,
            )
            for row in rows
        ]
