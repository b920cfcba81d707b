"""Which revision a request means: the one it names, the one it runs with, or what its files hold."""

from __future__ import annotations

from pathlib import Path

from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import Stamp, stamp


class Identities:
    """Digests already known, so that no file is hashed twice and no running sequence changes its adapter."""

    def __init__(self) -> None:
        self._by_path: dict[str, tuple[Stamp | None, str]] = {}
        self._in_use: dict[LoRARequest, str] = {}
        self._by_id: dict[int, str] = {}
        self._pinned_ids: set[int] = set()

    def revision_of(self, request: LoRARequest) -> str | None:
        """Return a request's revision; None while its files have not been read in their present state."""
        if request.revision is not None:
            return request.revision
        if (held := self._in_use.get(request)) is not None:
            return held
        files, revision = self._by_path.get(request.lora_path, (None, ""))
        return revision if files is not None and stamp(Path(request.lora_path)) == files else None

    def learn(self, path: str, files: Stamp | None, revision: str) -> None:
        """Note what a path's files held in a state."""
        self._by_path[path] = (files, revision)

    def hold(self, request: LoRARequest, revision: str) -> None:
        """Keep a request's meaning while sequences use it, even if its files change meanwhile."""
        if request.revision is None:
            self._in_use[request] = revision

    def let_go(self, revision: str) -> None:
        """No sequence uses the revision any more: its requests mean their files again."""
        for request in [request for request, held in self._in_use.items() if held == revision]:
            del self._in_use[request]

    def let_go_of_path(self, path: str) -> None:
        """Let later requests for a path mean its files, whatever sequences run with."""
        for request in [request for request in self._in_use if request.lora_path == path]:
            del self._in_use[request]

    def register(self, lora_int_id: int, revision: str) -> None:
        """Let an id stand for a revision from now on."""
        self._by_id[lora_int_id] = revision

    def revision_by_id(self, lora_int_id: int) -> str | None:
        """Return the revision that an id stands for, None if it stands for none."""
        return self._by_id.get(lora_int_id)

    def unregister(self, lora_int_id: int) -> None:
        """Drop an id and its pin; raises KeyError if it is not registered."""
        del self._by_id[lora_int_id]
        self._pinned_ids.discard(lora_int_id)

    def forget(self, revision: str) -> None:
        """Drop the ids of a revision that left the host."""
        for lora_int_id in self.ids_of(revision):
            self.unregister(lora_int_id)

    def pin(self, lora_int_id: int) -> None:
        """Pin what an id stands for, now and later; the pin ends with the id."""
        self._pinned_ids.add(lora_int_id)

    def unpin(self, lora_int_id: int) -> bool:
        """Undo `pin`; False if the id was not pinned."""
        if lora_int_id not in self._pinned_ids:
            return False
        self._pinned_ids.discard(lora_int_id)
        return True

    def has_pin(self, revision: str) -> bool:
        """Whether an id that stands for the revision is pinned."""
        return any(self._by_id[lora_int_id] == revision for lora_int_id in self._pinned_ids)

    def ids_of(self, revision: str) -> list[int]:
        """List every id that stands for the revision."""
        return [lora_int_id for lora_int_id, held in self._by_id.items() if held == revision]

    def ids(self) -> set[int]:
        """Return every registered id."""
        return set(self._by_id)
