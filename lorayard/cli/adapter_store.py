"""The content-addressed adapter store, and how an adapter gets into it and into the catalogue."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from db import Database
from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
from lorayard.cli.settings import StoreSettings
from lorayard.contract.errors import LorayardError
from lorayard.contract.job import Name
from lorayard.server.adapter_store import revision_folder
from workers.engine.core.errors import AdapterError
from workers.engine.lora import AdapterDescription, LoRARequest, adapter_digest, describe_base
from workers.engine.lora.files.adapter_files import find_files
from workers.engine.lora.loading import LoadSpec
from workers.engine.lora.loading.work import try_adapter

_INCOMING = ".incoming-"


class AdapterStore:
    """A folder with one folder per revision, named by the hex part of its digest; revisions never change."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path_of(self, digest: str) -> Path:
        """Where the files of a revision are, or would be."""
        return revision_folder(self._root, digest)

    def put(self, source: Path, digest: str) -> Path:
        """Copy a revision in, unless it is there and sound; readers never see half of one."""
        target = self.path_of(digest)
        if self._is_sound(target, digest):
            return target
        self._root.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
        try:
            _copy(source, incoming)
            if (copied := adapter_digest(incoming)) != digest:
                raise LorayardError(
                    f"{source} changed while it was copied (digest {copied}, checked was {digest}): "
                    "add it again once nothing writes to it"
                )
            self._install(incoming, target, digest)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return target

    def _install(self, incoming: Path, target: Path, digest: str) -> None:
        """Give the finished copy its name; what stood there damaged gives way."""
        if target.exists() and not self._is_sound(target, digest):
            damaged = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
            with suppress(FileNotFoundError):  # somebody else moved it in this moment
                target.rename(damaged / "damaged")
            shutil.rmtree(damaged, ignore_errors=True)
        try:
            incoming.rename(target)
        except OSError:
            # Somebody else put the same revision there in this moment.
            if not self._is_sound(target, digest):
                raise
        _sync(self._root)

    @staticmethod
    def _is_sound(target: Path, digest: str) -> bool:
        with suppress(AdapterError):
            return adapter_digest(target) == digest
        return False


@dataclass(frozen=True, slots=True)
class PoolOfAdapters:
    """A pool, and what its workers take."""

    pool: str
    spec: LoadSpec

    @classmethod
    def of(cls, settings: StoreSettings) -> PoolOfAdapters:
        """Describe the pool that the settings name; CheckpointError for a base that is not served."""
        spec = LoadSpec(
            describe_base(settings.model, name=settings.served_model_name),
            settings.max_lora_rank,
            settings.dtype,
            max_bytes=settings.max_cpu_lora_bytes,
            max_saved_bytes=settings.max_saved_module_bytes,
            timeout_s=settings.lora_load_timeout_s,
        )
        return cls(settings.pool, spec)


def add_adapters(
    database: Database,
    store: AdapterStore,
    pool: PoolOfAdapters,
    adapters: Sequence[tuple[str, Path]],  # name and folder of each
    *,
    base_name: str | None = None,
) -> Iterator[tuple[str, AdapterDescription]]:
    """Check all adapters, then copy each into the store and make it the current revision of its name.

    `base_name` is what their base is called, whatever their own files say. Raises LorayardError for a name,
    the AdapterError that fits for files, both before anything has changed, and DatabaseUnavailable.
    """
    names = [name for name, _ in adapters]
    for name in names:
        check_name(name)
        if names.count(name) > 1:
            raise LorayardError(f"{name} is given twice; a name has one current revision: leave one out")
    found = [
        (name, path, try_adapter(LoRARequest(name, 1, str(path), base_model_name=base_name), pool.spec))
        for name, path in adapters
    ]
    for name, path, description in found:
        _add(database, store, pool.pool, name, path, description)
        yield name, description


def _add(
    database: Database,
    store: AdapterStore,
    pool: str,
    name: str,
    path: Path,
    found: AdapterDescription,
) -> None:
    # First, so that a revision about to be collected is kept from it, or its files are put back below.
    database.run(lambda connection: AdapterRepository(connection).keep(found.digest))
    store.put(path, found.digest)
    row = RevisionRow(found.digest, found.rank, found.targets, found.bytes, found.warnings)
    database.run(lambda connection: AdapterRepository(connection).add_revision(pool, name, row))


def check_name(name: str) -> None:
    """Refuse a name that no job could carry."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise LorayardError(
            f"{name[:80]!r} cannot name an adapter: use 1 to 200 letters, digits and . _ : / @ + -, "
            "beginning with a letter, a digit or an underscore"
        ) from error


def _copy(source: Path, target: Path) -> None:
    """Copy the files that make up an adapter and nothing else, readable to workers, through to the disk."""
    for file in find_files(source, f"adapter at {source}"):
        copy = target / file.name
        shutil.copyfile(file, copy)
        copy.chmod(0o444)
        _sync(copy)
    target.chmod(0o755)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
