"""What could not be loaded from which store: kept by the leader, for people and for the next leader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, text

from db.records import StoreFailureRow

_FORGET = text("""
    DELETE FROM store_failures WHERE pool = :pool AND digest = :digest
""")

_DROP = text("""
    DELETE FROM store_failures f
    USING unnest(CAST(:digests AS text[]), CAST(:stores AS text[])) AS gone(digest, store)
    WHERE f.pool = :pool AND f.digest = gone.digest AND f.store = gone.store
""")

_KEEP = text("""
    INSERT INTO store_failures (
        pool, digest, store, code, reason, first_at, failed_at, cools_until, pause_s, tries
    )
    VALUES (
        :pool, :digest, :store, :code, :reason, now() - make_interval(secs => :first_ago_s),
        now() - make_interval(secs => :failed_ago_s), now() + make_interval(secs => :left_s), :pause_s, :tries
    )
    ON CONFLICT (pool, digest, store) DO UPDATE
        SET code = excluded.code, reason = excluded.reason, first_at = excluded.first_at,
            failed_at = excluded.failed_at, cools_until = excluded.cools_until, pause_s = excluded.pause_s,
            tries = excluded.tries
""")

_LISTED = text("""
    SELECT digest, store, code, reason, extract(epoch FROM now() - first_at)::float8 AS first_ago_s,
        extract(epoch FROM now() - failed_at)::float8 AS failed_ago_s,
        extract(epoch FROM cools_until - now())::float8 AS left_s, pause_s, tries
    FROM store_failures WHERE pool = :pool ORDER BY digest, store
""")


class StoreFailureRepository:
    """The failures of a pool's stores; who writes a revision as well does so first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def keep(self, pool: str, *failures: StoreFailureRow) -> None:
        """Keep failures, each in the place of what was known of it."""
        if failures:
            self._connection.execute(_KEEP, [{"pool": pool, **asdict(failure)} for failure in failures])

    def drop(self, pool: str, gone: Sequence[tuple[str, str]]) -> None:
        """Forget failures by revision and store."""
        digests, stores = [digest for digest, _ in gone], [store for _, store in gone]
        self._connection.execute(_DROP, {"pool": pool, "digests": digests, "stores": stores})

    def forget(self, pool: str, digest: str) -> None:
        """Let a revision be tried at once wherever it could not be loaded."""
        self._connection.execute(_FORGET, {"pool": pool, "digest": digest})

    def listed(self, pool: str) -> list[StoreFailureRow]:
        """List all that is known."""
        rows = self._connection.execute(_LISTED, {"pool": pool}).mappings()
        return [StoreFailureRow(**row) for row in rows]

    def cooling(self, pool: str) -> dict[str, list[StoreFailureRow]]:
        """List by revision what stores are not asked for now."""
        found: dict[str, list[StoreFailureRow]] = {}
        for failure in self.listed(pool):
            if failure.left_s > 0:
                found.setdefault(failure.digest, []).append(failure)
        return found
