"""Adapters: names that move over revisions, and revisions set aside because they cannot be loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, text

from db.records import FinishedJob, ListedAdapter, RevisionRow, StoreFailureRow
from db.repositories.endings import write_endings
from db.repositories.store_failures import StoreFailureRepository
from lorayard.contract.messages import CatalogueEntry

QUARANTINED_CODE: Final = "adapter_quarantined"

_ADD_REVISION = text("""
    INSERT INTO adapter_revisions (pool, digest, rank, targets, bytes, warnings)
    VALUES (:pool, :digest, :rank, CAST(:targets AS text[]), :bytes, CAST(:warnings AS text[]))
    ON CONFLICT (pool, digest) DO UPDATE
        SET state = 'active', reason = NULL, unused_since = NULL, warnings = excluded.warnings
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

_LIFT = text("""
    UPDATE adapter_revisions SET state = 'active', reason = NULL
    WHERE pool = :pool AND digest = :digest AND state = 'quarantined'
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

_SIZES = text("""
    SELECT r.digest, r.bytes
    FROM adapters a JOIN adapter_revisions r ON r.pool = a.pool AND r.digest = a.current_revision
    WHERE a.pool = :pool
""")

_LISTED = text("""
    SELECT a.pool, p.model_name, p.model_path, a.name, a.current_revision AS revision, r.rank, r.bytes,
        r.state, r.warnings, r.reason
    FROM adapters a JOIN adapter_revisions r ON r.pool = a.pool AND r.digest = a.current_revision
        LEFT JOIN pools p ON p.pool = a.pool
    WHERE a.state = 'active' AND (CAST(:pool AS text) IS NULL OR a.pool = :pool)
    ORDER BY p.model_name, a.pool, a.name
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

_IS_UNPINNED = """
    NOT EXISTS (SELECT FROM adapters a
        WHERE a.pool = r.pool AND a.current_revision = r.digest AND a.state = 'active')
    AND NOT EXISTS (SELECT FROM jobs j
        WHERE j.pool = r.pool AND j.revision = r.digest AND j.state = 'queued')
    AND NOT EXISTS (SELECT FROM jobs j
        WHERE j.pool = r.pool AND j.revision = r.digest AND j.state = 'leased')
"""

_LOCK_PINNED = text("""
    SELECT digest, unused_since FROM adapter_revisions
    WHERE pool = :pool AND digest = ANY(CAST(:digests AS text[])) ORDER BY digest FOR SHARE
""")

_SERVED_BEFORE = "CASE WHEN reason IS NULL THEN 'active' ELSE 'quarantined' END"

_KEEP = text(f"""
    UPDATE adapter_revisions
    SET unused_since = NULL, state = CASE WHEN state = 'collecting' THEN {_SERVED_BEFORE} ELSE state END
    WHERE digest = ANY(CAST(:digests AS text[])) AND unused_since IS NOT NULL
""")  # noqa: S608

_MARK_UNUSED = text(f"""
    UPDATE adapter_revisions r SET unused_since = now()
    WHERE pool = :pool AND state IN ('active', 'quarantined') AND unused_since IS NULL AND {_IS_UNPINNED}
""")  # noqa: S608

# `add_revision` and `keep` clear `unused_since`, so a row that waited for one of them is passed over.
_MARK_COLLECTING = text(f"""
    UPDATE adapter_revisions r SET state = 'collecting'
    WHERE pool = :pool AND state IN ('active', 'quarantined')
        AND unused_since <= now() - make_interval(secs => :unused_for_s) AND {_IS_UNPINNED}
    RETURNING digest
""")  # noqa: S608

_COLLECTING = text("""
    SELECT digest FROM adapter_revisions WHERE pool = :pool AND state = 'collecting' ORDER BY digest
""")

_LOCK_EVERYWHERE = text("""
    SELECT state FROM adapter_revisions WHERE digest = :digest ORDER BY pool FOR UPDATE
""")

_IS_PINNED = text(f"""
    SELECT EXISTS (SELECT FROM adapter_revisions r WHERE digest = :digest AND NOT ({_IS_UNPINNED}))
""")  # noqa: S608

_COLLECTED = text("""
    UPDATE adapter_revisions SET state = 'collected' WHERE digest = :digest AND state = 'collecting'
""")

_HAS_FILES = text("""
    SELECT EXISTS (SELECT FROM adapter_revisions WHERE pool = :pool AND state <> 'collected')
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
            "warnings": list(revision.warnings),
        }
        self._bump(pool)
        self._connection.execute(_ADD_REVISION, values)
        self._connection.execute(_POINT, values)
        StoreFailureRepository(self._connection).forget(pool, revision.digest)

    def remove(self, pool: str, name: str) -> bool:
        """Offer a name no more; jobs admitted before keep their revision. False if there is none."""
        if self._connection.execute(_REMOVE, {"pool": pool, "name": name}).one_or_none() is None:
            return False
        self._bump(pool)
        return True

    def quarantine(self, pool: str, digest: str, reason: str) -> bool:
        """Set aside a revision that cannot be loaded; False if it is set aside already, or unknown."""
        values = {"pool": pool, "digest": digest, "reason": reason}
        if self._connection.execute(_QUARANTINE, values).one_or_none() is None:
            return False
        self._bump(pool)
        return True

    def lift(self, pool: str, digest: str) -> bool:
        """Trust a quarantined revision again: a worker has loaded it; False if it is not set aside."""
        if self._connection.execute(_LIFT, {"pool": pool, "digest": digest}).one_or_none() is None:
            return False
        self._bump(pool)
        return True

    def reject_quarantined(self, pool: str) -> list[FinishedJob]:
        """End the queued jobs of quarantined revisions, with the reason."""
        rows = self._connection.execute(_REJECT_QUARANTINED, {"pool": pool, "code": QUARANTINED_CODE}).all()
        messages = [
            f"adapter {row.adapter} is quarantined ({row.reason}): mend its files or add it again, and "
            "submit the job once `lorayard adapters list` calls it active"
            for row in rows
        ]
        return write_endings(self._connection, [row.job_id for row in rows], messages)

    def catalogue(self, pool: str, known: Mapping[str, CatalogueEntry] | None = None) -> list[CatalogueEntry]:
        """List every name with its current revision, removed ones included.

        An entry that is `known` by its name, and has not changed, is that very object.
        """
        known = known or {}
        return [
            _entry(row, known.get(row.name)) for row in self._connection.execute(_CATALOGUE, {"pool": pool})
        ]

    def sizes(self, pool: str) -> dict[str, int]:
        """Tell the bytes of the revisions that names stand for."""
        rows = self._connection.execute(_SIZES, {"pool": pool})
        return {row.digest: row.bytes for row in rows}

    def listed(self, pool: str | None) -> list[ListedAdapter]:
        """List the names of a pool, or of all, that are not removed, with rank, size and state."""
        rows = self._connection.execute(_LISTED, {"pool": pool}).mappings().all()
        failures = StoreFailureRepository(self._connection)
        failing = {found: failures.cooling(found) for found in {row["pool"] for row in rows}}
        return [_listed(ListedAdapter(**row), failing[row["pool"]]) for row in rows]

    def version(self, pool: str) -> int:
        """Tell how often the catalogue has changed."""
        return int(self._connection.execute(_VERSION, {"pool": pool}).scalar() or 0)

    def pin(self, pool: str, digests: Collection[str]) -> None:
        """Keep revisions from being collected until this transaction's jobs are there to pin them."""
        if not digests:
            return
        rows = self._connection.execute(_LOCK_PINNED, {"pool": pool, "digests": sorted(digests)}).all()
        unused = [row.digest for row in rows if row.unused_since is not None]
        if unused:
            self._connection.execute(_KEEP, {"digests": unused})

    def keep(self, digest: str) -> None:
        """Let a revision count as used from now on, in every pool: it is about to be added again.

        Waits for a collector that has it in hand; `add_revision` has the files put back if it was too late.
        """
        self._connection.execute(_KEEP, {"digests": [digest]})

    def has_files(self, pool: str) -> bool:
        """Tell whether the pool has revisions whose files are in a store."""
        return bool(self._connection.execute(_HAS_FILES, {"pool": pool}).scalar_one())

    def mark_unused(self, pool: str, unused_for_s: float) -> list[str]:
        """Note what nobody uses; returns what was so for long enough, and is `collecting` from now on."""
        self._connection.execute(_MARK_UNUSED, {"pool": pool})
        marked = self._connection.execute(_MARK_COLLECTING, {"pool": pool, "unused_for_s": unused_for_s})
        return sorted(marked.scalars())

    def collecting(self, pool: str) -> list[str]:
        """List the revisions whose files are to go."""
        return list(self._connection.execute(_COLLECTING, {"pool": pool}).scalars())

    def lock_for_collection(self, digest: str) -> Literal["collect", "keep", "collected"]:
        """Decide, for the rest of this transaction, whether the files of a revision may go from the store.

        `keep`: somebody uses it after all, in this pool or another one; it is back in service.
        `collected`: they have gone already.
        """
        states = set(self._connection.execute(_LOCK_EVERYWHERE, {"digest": digest}).scalars())
        # A statement of its own, so that it sees the jobs of an admission that held the lock.
        is_pinned = bool(self._connection.execute(_IS_PINNED, {"digest": digest}).scalar())
        if is_pinned or states & {"active", "quarantined"}:
            self._connection.execute(_KEEP, {"digests": [digest]})
            return "keep"
        return "collect" if "collecting" in states else "collected"

    def set_collected(self, digest: str) -> None:
        """Say that the files of a revision are gone."""
        self._connection.execute(_COLLECTED, {"digest": digest})

    def _bump(self, pool: str) -> None:
        self._connection.execute(_BUMP, {"pool": pool})


def _entry(row: Row[Any], known: CatalogueEntry | None) -> CatalogueEntry:
    if known is not None and (known.revision, known.rank, known.state) == (row.revision, row.rank, row.state):
        return known
    return CatalogueEntry(name=row.name, revision=row.revision, rank=row.rank, state=row.state)


def _listed(adapter: ListedAdapter, failing: Mapping[str, Sequence[StoreFailureRow]]) -> ListedAdapter:
    """Say of one that is active where it cannot be loaded now."""
    failures = failing.get(adapter.revision)
    if adapter.state != "active" or not failures:
        return adapter
    reason = "; ".join(
        f"{one.store} could not give it ({one.code}: {one.reason}), and is asked again in {one.left_s:.0f} s"
        for one in failures
    )
    return replace(adapter, state="cooling", reason=reason)
