"""Adapters: names that move over revisions, and revisions set aside because they cannot be loaded."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from db.records import FinishedJob, ListedAdapter, RevisionRow
from db.repositories.endings import write_endings
from lorayard.contract.messages import CatalogueEntry

QUARANTINED_CODE: Final = "adapter_quarantined"

_ADD_REVISION = text("""
    INSERT INTO adapter_revisions (pool, digest, rank, targets, bytes)
    VALUES (:pool, :digest, :rank, CAST(:targets AS text[]), :bytes)
    ON CONFLICT (pool, digest) DO UPDATE SET state = 'active', reason = NULL
""")

_POINT = text("""
    INSERT INTO adapters (pool, name, current_revision) VALUES (:pool, :name, :digest)
    ON CONFLICT (pool, name) DO UPDATE
        SET current_revision = excluded.current_revision, state = 'active', updated_at = now()
""")

_REMOVE = text("""
    UPDATE adapters SET state = 'removed', updated_at = now()
    WHERE pool = :pool AND name = :name AND state = 'active'
    RETURNING name
""")

_QUARANTINE = text("""
    UPDATE adapter_revisions SET state = 'quarantined', reason = :reason
    WHERE pool = :pool AND digest = :digest AND state = 'active'
    RETURNING digest
""")

_BUMP = text("""
    INSERT INTO catalogues AS c (pool, version) VALUES (:pool, 1)
    ON CONFLICT (pool) DO UPDATE SET version = c.version + 1
""")

_VERSION = text("SELECT version FROM catalogues WHERE pool = :pool")

_CATALOGUE = text("""
    SELECT a.name, a.current_revision AS revision, r.rank,
        CASE WHEN a.state = 'removed' THEN a.state ELSE r.state END AS state
    FROM adapters a JOIN adapter_revisions r ON r.pool = a.pool AND r.digest = a.current_revision
    WHERE a.pool = :pool ORDER BY a.name
""")

_LISTED = text("""
    SELECT a.name, a.current_revision AS revision, r.rank, r.bytes, r.state
    FROM adapters a JOIN adapter_revisions r ON r.pool = a.pool AND r.digest = a.current_revision
    WHERE a.pool = :pool AND a.state = 'active' ORDER BY a.name
""")

_REJECT_QUARANTINED = text("""
    WITH chosen AS MATERIALIZED (
        SELECT j.job_id, r.reason
        FROM jobs j JOIN adapter_revisions r ON r.pool = j.pool AND r.digest = j.revision
        WHERE j.pool = :pool AND j.state = 'queued' AND r.state = 'quarantined'
        ORDER BY j.job_id FOR UPDATE OF j
    )
    UPDATE jobs j
    SET state = 'rejected', ended_at = now(), error_code = :code,
        queue_ms = 1000 * extract(epoch FROM now() - submitted_at)::float8
    FROM chosen WHERE j.job_id = chosen.job_id AND j.state = 'queued'
    RETURNING j.job_id, j.adapter, chosen.reason
""")

_UNPINNED = text("""
    SELECT digest FROM adapter_revisions r
    WHERE pool = :pool
        AND NOT EXISTS (SELECT FROM adapters a
            WHERE a.pool = r.pool AND a.current_revision = r.digest AND a.state = 'active')
        AND NOT EXISTS (SELECT FROM jobs j
            WHERE j.pool = r.pool AND j.revision = r.digest AND j.state = 'queued')
        AND NOT EXISTS (SELECT FROM jobs j
            WHERE j.pool = r.pool AND j.revision = r.digest AND j.state = 'leased')
    ORDER BY digest
""")


class AdapterRepository:
    """The catalogue of a pool; each change of it raises the catalogue's version."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add_revision(self, pool: str, name: str, revision: RevisionRow) -> None:
        """Make a revision the current one of a name; added again, a quarantined one is trusted again."""
        values = {
            "pool": pool,
            "name": name,
            "digest": revision.digest,
            "rank": revision.rank,
            "targets": list(revision.targets),
            "bytes": revision.bytes,
        }
        self._bump(pool)
        self._connection.execute(_ADD_REVISION, values)
        self._connection.execute(_POINT, values)

    def remove(self, pool: str, name: str) -> bool:
        """Offer a name no more; jobs admitted before keep their revision. False where there is none."""
        if self._connection.execute(_REMOVE, {"pool": pool, "name": name}).one_or_none() is None:
            return False
        self._bump(pool)
        return True

    def quarantine(self, pool: str, digest: str, reason: str) -> bool:
        """Set aside a revision that cannot be loaded; False where it is set aside already, or unknown."""
        values = {"pool": pool, "digest": digest, "reason": reason}
        if self._connection.execute(_QUARANTINE, values).one_or_none() is None:
            return False
        self._bump(pool)
        return True

    def reject_quarantined(self, pool: str) -> list[FinishedJob]:
        """End the queued jobs of quarantined revisions, with the reason."""
        rows = self._connection.execute(_REJECT_QUARANTINED, {"pool": pool, "code": QUARANTINED_CODE}).all()
        messages = [
            f"adapter {row.adapter} is quarantined ({row.reason}): mend it and add it again" for row in rows
        ]
        return write_endings(self._connection, [row.job_id for row in rows], messages)

    def catalogue(self, pool: str) -> list[CatalogueEntry]:
        """List every name with its current revision, removed ones included."""
        rows = self._connection.execute(_CATALOGUE, {"pool": pool})
        return [
            CatalogueEntry(name=row.name, revision=row.revision, rank=row.rank, state=row.state)
            for row in rows
        ]

    def listed(self, pool: str) -> list[ListedAdapter]:
        """List the names that are not removed, with rank, size and state of their revisions."""
        rows = self._connection.execute(_LISTED, {"pool": pool}).mappings()
        return [ListedAdapter(**row) for row in rows]

    def version(self, pool: str) -> int:
        """Tell how often the catalogue has changed."""
        return int(self._connection.execute(_VERSION, {"pool": pool}).scalar() or 0)

    def unpinned_revisions(self, pool: str) -> list[str]:
        """List the revisions that no active name and no unfinished job uses: their files may go."""
        return list(self._connection.execute(_UNPINNED, {"pool": pool}).scalars())

    def _bump(self, pool: str) -> None:
        self._connection.execute(_BUMP, {"pool": pool})
