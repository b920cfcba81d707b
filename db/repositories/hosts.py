"""What is remembered of a pool's hosts: the deaths of their engines."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from db.losses import HostRecord

_ENTER = text("""
    INSERT INTO worker_hosts (pool, host, died_at, in_a_row, has_ended, lone_deaths)
    VALUES (:pool, :host, '{}', 0, false, 0)
    ON CONFLICT (pool, host) DO NOTHING
""")

_LOCK = text("""
    SELECT died_at, in_a_row, has_ended, lone_job, lone_deaths
    FROM worker_hosts WHERE pool = :pool AND host = :host FOR UPDATE
""")

_WRITE = text("""
    UPDATE worker_hosts SET died_at = :died_at, in_a_row = :in_a_row, has_ended = :has_ended,
        lone_job = :lone_job, lone_deaths = :lone_deaths
    WHERE pool = :pool AND host = :host
""")

# Hosts come and go with their containers' names; what one has seen two hours ago says nothing of it any more.
_FORGET = text("""
    DELETE FROM worker_hosts
    WHERE pool = :pool AND host <> :host AND died_at[cardinality(died_at)] < now() - interval '2 hours'
""")

_COUNT = text("""
    SELECT count(DISTINCT coalesce(w.host, w.hostname)) FROM workers w
    WHERE w.pool = :pool AND w.state IN ('ready', 'draining', 'unhealthy')
        AND coalesce(w.host, w.hostname) <> :host
""")


class HostRepository:
    """The hosts of one pool; used by the leader when it takes jobs back from a worker that ended."""

    def __init__(self, connection: Connection, pool: str) -> None:
        self._connection = connection
        self._pool = pool

    def lock(self, host: str) -> HostRecord:
        """Read what is known of a host, and keep others from adding to it until the transaction ends."""
        name = {"pool": self._pool, "host": host}
        self._connection.execute(_ENTER, name)
        row = self._connection.execute(_LOCK, name).one()
        return HostRecord(tuple(row.died_at), row.in_a_row, row.has_ended, row.lone_job, row.lone_deaths)

    def write(self, host: str, record: HostRecord) -> None:
        """Replace what is known of a host, and forget those that nothing has died on for long."""
        name = {"pool": self._pool, "host": host}
        values: dict[str, list[datetime] | int | bool | UUID | None] = {
            "died_at": list(record.died_at),
            "in_a_row": record.in_a_row,
            "has_ended": record.has_ended,
            "lone_job": record.lone_job,
            "lone_deaths": record.lone_deaths,
        }
        self._connection.execute(_WRITE, name | values)
        self._connection.execute(_FORGET, name)

    def has_others(self, host: str) -> bool:
        """Whether any other host serves the pool now."""
        return bool(self._connection.execute(_COUNT, {"pool": self._pool, "host": host}).scalar_one())
