"""Keeps Redis' copy of the catalogue: what has changed is written alone, and all of it in small parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

from lorayard.contract.messages import CatalogueEntry
from scheduler.leader_context import LeaderContext

PART_ENTRIES: Final = 250
"""Of one call, during which Redis serves nobody else: under a millisecond."""

NOT_MIRRORED: Final = -1


class CatalogueMirror:
    """Mutable: what this leader has written to Redis last; raises redis-py's errors and Deposed."""

    def __init__(self, context: LeaderContext) -> None:
        self._catalogue = context.keys.catalogue
        self._admission = context.keys.admission
        self._next = context.keys.next_catalogue
        self._write_part = context.script("mirror_catalogue")
        self._set_version = context.script("set_catalogue")
        self._version = NOT_MIRRORED
        self._mirrored: Mapping[str, CatalogueEntry] = {}

    def follow(self, offered: Sequence[CatalogueEntry], version: int, found: int) -> None:
        """Bring the mirror to a version; `found` is the one that Redis has now.

        An entry that has not changed is the same object in every version. If Redis has what another leader
        wrote, or nothing, clients see the old mirror until the whole of the new one is there.
        """
        entries = {entry.name: entry for entry in offered}
        is_new = found == NOT_MIRRORED or found != self._version
        before: Mapping[str, CatalogueEntry] = {} if is_new else self._mirrored
        changed = [entry for entry in offered if before.get(entry.name) is not entry]
        self._write([name for name in before if name not in entries], changed, is_new=is_new)
        keys = [self._catalogue, self._admission, self._next]
        self._set_version(keys, [version, "new" if is_new else ""])
        self._version, self._mirrored = version, entries

    def _write(self, removed: Sequence[str], changed: Sequence[CatalogueEntry], *, is_new: bool) -> None:
        target = self._next if is_new else self._catalogue
        names, entries = iter(removed), iter(changed)
        begins = is_new
        while True:
            off, part = list(islice(names, PART_ENTRIES)), list(islice(entries, PART_ENTRIES))
            if not (off or part or begins):
                return
            arguments: list[Any] = ["new" if begins else "", len(off), *off]
            for entry in part:
                arguments += (entry.name, entry.model_dump_json())
            self._write_part([target], arguments)
            begins = False
