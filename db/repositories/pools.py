"""Pools: entered by their workers, read by people and commands."""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import Connection, text

from db.records import PoolRow

_ENTER = text("""
    INSERT INTO pools (
        pool, model_name, served_model_name, model_path, dtype, quantization, generation_config, tokenizer,
        config
    )
    VALUES (
        :pool, :model_name, :served_model_name, :model_path, :dtype, :quantization, :generation_config,
        :tokenizer, CAST(:config AS json)
    )
    ON CONFLICT (pool) DO NOTHING
""")

_LOCK = text("SELECT tokenizer FROM pools WHERE pool = :pool FOR UPDATE")

_HAS_OTHERS = text("""
    SELECT EXISTS (
        SELECT FROM workers w JOIN worker_leases l ON l.incarnation = w.incarnation
        WHERE w.pool = :pool AND w.incarnation <> :incarnation
            AND w.state IN ('ready', 'draining') AND NOT l.lost AND l.expires_at > now()
    )
""")

_REPLACE = text("""
    UPDATE pools
    SET model_name = :model_name, served_model_name = :served_model_name, model_path = :model_path,
        quantization = :quantization, tokenizer = :tokenizer, config = CAST(:config AS json),
        registered_at = now()
    WHERE pool = :pool
""")

_LISTED = text("""
    SELECT pool, model_name, served_model_name, model_path, dtype, quantization, generation_config, tokenizer,
        config
    FROM pools ORDER BY model_name, model_path, pool
""")


class PoolRepository:
    """The pools that workers have registered for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def enter(self, row: PoolRow, incarnation: str) -> str | None:
        """Enter a worker's pool; the digest of the pool's tokenizer if it is another one, and in use.

        Locks the pool's row for the rest of the transaction, before anything of workers is locked.
        """
        values = asdict(row) | {"config": json.dumps(row.config)}
        self._connection.execute(_ENTER, values)
        known: str = self._connection.execute(_LOCK, values).scalar_one()
        # A statement of its own, so that it sees the worker that held the lock.
        if (
            known != row.tokenizer
            and self._connection.execute(
                _HAS_OTHERS, {"pool": row.pool, "incarnation": incarnation}
            ).scalar_one()
        ):
            return known
        self._connection.execute(_REPLACE, values)
        return None

    def listed(self) -> list[PoolRow]:
        """List all pools that a worker has ever registered for, by their model's name."""
        return [PoolRow(**row) for row in self._connection.execute(_LISTED).mappings()]
