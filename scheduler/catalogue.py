"""The leader's copy of the adapter catalogue, re-read whenever its version has changed."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from db.repositories.adapters import QUARANTINED_CODE, AdapterRepository
from lorayard.contract.messages import CatalogueEntry
from lorayard.contract.result import JobError

UNKNOWN_CODE: Final = "unknown_adapter"


class Catalogue:
    """Mutable: names, the revisions they stand for, and the ranks of all revisions seen."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._entries: dict[str, CatalogueEntry] = {}
        self._ranks: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self.version = -1
        self.quarantined: frozenset[str] = frozenset()

    def refresh(self, connection: Connection) -> bool:
        """Read the catalogue anew if it has changed; returns whether it had."""
        adapters = AdapterRepository(connection)
        version = adapters.version(self._pool)
        if version == self.version:
            return False
        entries = adapters.catalogue(self._pool, self._entries)
        self._entries = {entry.name: entry for entry in entries}
        self._ranks.update((entry.revision, entry.rank) for entry in entries)
        self._sizes.update(adapters.sizes(self._pool))
        self.quarantined = frozenset(e.revision for e in entries if e.state == "quarantined")
        self.version = version
        return True

    @property
    def offered(self) -> list[CatalogueEntry]:
        """What clients may see: all names but removed ones."""
        return [entry for entry in self._entries.values() if entry.state != "removed"]

    def rank(self, revision: str | None) -> int:
        """Tell a revision's rank; 0 for the base model, and for one that no name stands for any more."""
        return self._ranks.get(revision, 0) if revision is not None else 0

    def num_bytes(self, revision: str | None) -> int:
        """Tell a revision's size; 0 as with `rank`."""
        return self._sizes.get(revision, 0) if revision is not None else 0

    def resolve(self, name: str | None) -> tuple[str | None, JobError | None]:
        """Find the revision to pin, or the reason to reject the job."""
        if name is None:
            return None, None
        entry = self._entries.get(name)
        if entry is None or entry.state == "removed":
            return None, JobError(
                code=UNKNOWN_CODE,
                message=f"pool {self._pool} has no adapter {name!r}: `lorayard adapters list` shows them",
            )
        if entry.state == "quarantined":
            return entry.revision, JobError(
                code=QUARANTINED_CODE,
                message=f"adapter {name!r} is quarantined: mend its files or add it again, and submit the "
                "job once `lorayard adapters list` calls it active",
            )
        return entry.revision, None
