"""From an adapter's name to a request for it: places are asked in order, the first good adapter wins."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from workers.engine.core.errors import AdapterError, AdapterNotFound
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import Stamp, stamp
from workers.engine.lora.files.base import BaseDescription
from workers.engine.lora.files.validate import validate_adapter

_ID_DIGITS = 15
"""Hexadecimal digits of a digest in an id: 60 bits, which fit every integer type on the way."""


class AdapterResolver(Protocol):
    """A place that knows adapters by name."""

    def find(self, name: str) -> Path | None:
        """Return the folder of an adapter; None if the place knows no such name.

        Raises an AdapterError if it knows the name but cannot give the files.
        """
        ...


class FolderResolver:
    """A folder that holds adapters, each in a folder that has its name."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)

    def find(self, name: str) -> Path | None:
        """Return the folder of that name; a name is never a path, so that it cannot lead out of the root."""
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            return None
        folder = self._root / name
        try:
            return folder if folder.is_dir() else None
        except OSError:  # a name too long for a file
            return None

    def __str__(self) -> str:
        return str(self._root)


class ResolverChain:
    """Asks its places in order and checks what they find against the base, once for each state of the files.

    May be asked by many threads, and looks for each name once at a time. Requests have ids made of the
    adapter's digest: the same in every process, for copies too.
    """

    def __init__(
        self,
        resolvers: Sequence[AdapterResolver],
        *,
        base: BaseDescription,
        max_rank: int,
        target_modules: Sequence[str] | None = None,
    ) -> None:
        """`max_rank` and `target_modules` are those of the engine that will serve the requests."""
        self._resolvers = tuple(resolvers)
        self._base = base
        self._max_rank = max_rank
        self._target_modules = target_modules
        self._known: dict[Path, tuple[Stamp, str]] = {}
        self._searches: dict[str, Future[LoRARequest]] = {}
        self._lock = threading.Lock()

    def resolve(self, name: str) -> LoRARequest:
        """Return a request for the first good adapter of that name.

        Raises `AdapterNotFound` if no place knows the name, and the error of the first bad adapter if
        all that were found are bad.
        """
        with self._lock:
            search = self._searches.get(name)
            is_new = search is None
            if search is None:
                search = self._searches[name] = Future()
        if is_new:
            self._settle(search, name)
        return search.result()

    def _settle(self, search: Future[LoRARequest], name: str) -> None:
        try:
            search.set_result(self._search(name))
        except BaseException as error:  # noqa: BLE001  whoever waits for this search must hear of its end
            search.set_exception(error)
        finally:
            with self._lock:
                del self._searches[name]

    def _search(self, name: str) -> LoRARequest:
        first_error: AdapterError | None = None
        for resolver in self._resolvers:
            try:
                if (folder := resolver.find(name)) is not None:
                    digest = self._digest(folder, name)
                    return LoRARequest(name, _id_of(digest), str(folder), revision=digest)
            except AdapterError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        places = ", ".join(map(str, self._resolvers))
        raise AdapterNotFound(f"adapter {name!r} is in none of {places}; put its folder there")

    def _digest(self, folder: Path, name: str) -> str:
        files = stamp(folder)
        known_files, digest = self._known.get(folder, (None, ""))
        if files is None or files != known_files:
            digest = validate_adapter(
                folder,
                base=self._base,
                max_rank=self._max_rank,
                name=name,
                target_modules=self._target_modules,
            ).digest
            if files is not None:
                self._known[folder] = files, digest
        return digest


def _id_of(digest: str) -> int:
    return int(digest.removeprefix("sha256:")[:_ID_DIGITS], 16) + 1  # ids begin at 1
