"""Leadership of a pool: a term on the database's clock, taken and kept by guarded updates."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from sqlalchemy import Connection, text

from db.errors import Deposed

_TAKE = text("""
    INSERT INTO scheduler_terms AS held (pool, term, holder, expires_at)
    VALUES (:pool, 1, :holder, now() + make_interval(secs => :ttl_s))
    ON CONFLICT (pool) DO UPDATE
        SET term = held.term + 1, holder = excluded.holder, expires_at = excluded.expires_at
        WHERE held.expires_at <= now()
    RETURNING term
""")

_RENEW = text("""
    UPDATE scheduler_terms SET expires_at = now() + make_interval(secs => :ttl_s)
    WHERE pool = :pool AND holder = :holder AND term = :term
    RETURNING term
""")

_RESIGN = text("""
    UPDATE scheduler_terms SET expires_at = now()
    WHERE pool = :pool AND holder = :holder AND term = :term AND expires_at > now()
""")

_CHECK = text("""
    SELECT term, set_config('application_name', :name, true) FROM scheduler_terms
    WHERE pool = :pool AND term = :term FOR SHARE
""")

# A session in which a stopped process has sent half of a statement, or takes no answer over a Unix socket, is
# neither idle nor at the end of any other limit.
_EVICT = text("""
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) FROM pg_stat_activity a
    WHERE a.application_name = :name AND a.datname = current_database() AND a.usename = current_user
        AND EXISTS (SELECT FROM scheduler_terms WHERE pool = :pool AND expires_at <= now())
""")

_LEDGER = text("SELECT id FROM ledger_id")

_POOLS = text("SELECT pool FROM scheduler_terms ORDER BY pool")


class TermRepository:
    """Who leads a pool, and of which ledger."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ledger_id(self) -> UUID:
        """Tell the ledger's own id, which a copy of the database shares."""
        return cast("UUID", self._connection.execute(_LEDGER).scalar_one())

    def pools(self) -> list[str]:
        """Name the pools that ever had a leader of this ledger."""
        return list(self._connection.execute(_POOLS).scalars())

    def take(self, pool: str, holder: str, ttl_s: float) -> int | None:
        """Become the leader if nobody is; returns the new term, or None while another leads."""
        found = self._connection.execute(_TAKE, {"pool": pool, "holder": holder, "ttl_s": ttl_s})
        return cast("int | None", found.scalar_one_or_none())

    def renew(self, pool: str, holder: str, term: int, ttl_s: float) -> bool:
        """Stay the leader; False means that another leads.

        An expired term may be renewed as long as nobody else has become leader since.
        """
        found = self._connection.execute(
            _RENEW, {"pool": pool, "holder": holder, "term": term, "ttl_s": ttl_s}
        )
        return found.one_or_none() is not None

    def check(self, pool: str, term: int) -> None:
        """Hold the term until this transaction ends, so that nobody else leads meanwhile; raises Deposed."""
        asked = {"pool": pool, "term": term, "name": _session_name(pool)}
        if self._connection.execute(_CHECK, asked).one_or_none() is None:
            raise Deposed(f"term {term} of pool {pool} is over: another scheduler leads, stop acting for it")

    def evict(self, pool: str) -> int:
        """End the sessions in which a leader whose term has run out still holds it; returns how many."""
        asked = {"pool": pool, "name": _session_name(pool)}
        return cast("int", self._connection.execute(_EVICT, asked).scalar_one())

    def resign(self, pool: str, holder: str, term: int) -> None:
        """End the term at once, so that the next need not wait."""
        self._connection.execute(_RESIGN, {"pool": pool, "holder": holder, "term": term})


def _session_name(pool: str) -> str:
    """Name a leader's transactions in `pg_stat_activity`, within the 63 bytes that Postgres keeps of it."""
    return f"lorayard-leader {pool}"[:63]
