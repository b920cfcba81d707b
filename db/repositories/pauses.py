"""Pauses: which pools, tenants and adapters have their queued jobs wait."""

from __future__ import annotations

from sqlalchemy import Connection, TextClause, text

from db.records import EVERY_POOL, PauseKind, PauseRow

_COLUMNS = "kind, pool, name, extract(epoch FROM now() - paused_at)::float8 AS paused_s"

_PAUSE = text("""
    INSERT INTO pauses (kind, pool, name) VALUES (:kind, :pool, :name)
    ON CONFLICT (kind, pool, name) DO NOTHING RETURNING name
""")

_RESUME = text("DELETE FROM pauses WHERE kind = :kind AND pool = :pool AND name = :name RETURNING name")

_ALL = text(f"SELECT {_COLUMNS} FROM pauses ORDER BY kind, pool, name")  # noqa: S608

_OF_POOL = text(f"SELECT {_COLUMNS} FROM pauses WHERE pool IN (:pool, :every_pool)")  # noqa: S608


class PauseRepository:
    """Pauses by kind, pool and name; a tenant's pool is EVERY_POOL."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def pause(self, kind: PauseKind, pool: str, name: str) -> bool:
        """Have its queued jobs wait; False if they do already."""
        return self._changes(_PAUSE, kind, pool, name)

    def resume(self, kind: PauseKind, pool: str, name: str) -> bool:
        """Let its jobs go on; False if it was not paused."""
        return self._changes(_RESUME, kind, pool, name)

    def all(self) -> list[PauseRow]:
        """List what is paused in any pool."""
        return [PauseRow(*row) for row in self._connection.execute(_ALL)]

    def of_pool(self, pool: str) -> list[PauseRow]:
        """List what the leader of a pool must heed."""
        found = self._connection.execute(_OF_POOL, {"pool": pool, "every_pool": EVERY_POOL})
        return [PauseRow(*row) for row in found]

    def _changes(self, statement: TextClause, kind: PauseKind, pool: str, name: str) -> bool:
        values = {"kind": kind, "pool": pool, "name": name}
        return self._connection.execute(statement, values).one_or_none() is not None
