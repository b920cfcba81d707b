"""The content-addressed adapter store, and how an adapter gets into it and into the catalogue."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from db import Database
from db.records import PoolRow, RevisionRow
from db.repositories.adapters import AdapterRepository
from lorayard.cli.pools import folder_of, known_pools, listed, told_pool
from lorayard.cli.settings import StoreSettings
from lorayard.contract.errors import LorayardError
from lorayard.contract.job import Name
from lorayard.server.adapter_store import MARKER, is_store, make_store, revision_folder
from workers.engine.core.errors import AdapterError, EngineError
from workers.engine.lora import (
    AdapterDescription,
    BaseDescription,
    LoRARequest,
    adapter_digest,
    describe_base,
)
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

    def open(self, *, may_be_new: bool) -> None:
        """Make sure that the store is there; one that `may_be_new` is made.

        Raises LorayardError: what is not there may be a file system that is not mounted, and copies that are
        put under its mount point would be seen by nobody.
        """
        if (self._root / MARKER).is_file():
            return
        if not may_be_new and not is_store(self._root):
            raise LorayardError(
                f"LORAYARD_ADAPTER_STORE={self._root} is not an adapter store (it has no {MARKER}), though "
                "this pool has adapters in one: mount its file system, or name its folder; --new-store makes "
                "a new store there"
            )
        try:
            make_store(self._root)
        except FileNotFoundError as error:
            raise LorayardError(
                f"LORAYARD_ADAPTER_STORE={self._root}: there is no folder {self._root.parent} to make it in: "
                "mount its file system, or create that folder"
            ) from error

    def put(self, source: Path, digest: str) -> Path:
        """Copy a revision in, unless it is there and sound; readers never see half of one.

        The store must have been opened, and raises FileNotFoundError if it went away since.
        """
        target = self.path_of(digest)
        if self._is_sound(target, digest):
            return target
        (self._root / MARKER).stat()
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
    def of(cls, settings: StoreSettings, pool: str, model: Path) -> PoolOfAdapters:
        """Describe the pool of a model's folder; CheckpointError for a base that is not served."""
        base = describe_base(model, name=settings.served_model_name)
        return cls(pool, _spec(settings, base, settings.dtype))

    @classmethod
    def registered(cls, settings: StoreSettings, row: PoolRow) -> PoolOfAdapters:
        """Describe a pool that the ledger knows, where its model's folder is not by the config.json of it.

        Copies of the base's weights in adapters are then left to the workers to compare.
        """
        if (folder := folder_of(row)) is not None:
            base = describe_base(folder, name=row.served_model_name)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                stand_in = Path(scratch) / Path(row.model_path).name
                stand_in.mkdir()
                (stand_in / "config.json").write_text(json.dumps(row.config))
                base = describe_base(stand_in, name=row.served_model_name)
            vocabulary = base.vocabulary and replace(base.vocabulary, checkpoint="")
            base = replace(base, vocabulary=vocabulary, chats=None)
        return cls(row.pool, _spec(settings, base, row.dtype))


def _spec(settings: StoreSettings, base: BaseDescription, dtype: str) -> LoadSpec:
    return LoadSpec(
        base,
        settings.max_lora_rank,
        dtype,
        max_bytes=settings.max_cpu_lora_bytes,
        max_saved_bytes=settings.max_saved_module_bytes,
        timeout_s=settings.lora_load_timeout_s,
    )


def fitting_pool(
    database: Database,
    settings: StoreSettings,
    adapters: Sequence[tuple[str, Path]],
    *,
    base_name: str | None = None,
) -> PoolOfAdapters:
    """Return the pool that is told, or the only one of those that the ledger knows that takes all adapters.

    Raises LorayardError if none or several take them, and what `told_pool` raises.
    """
    if settings.model is not None and (pool_of_folder := settings.pool) is not None:
        return PoolOfAdapters.of(settings, pool_of_folder, settings.model)
    told_pool(database, settings)
    rows = known_pools(database, settings)
    if not rows:
        raise LorayardError(
            "the ledger knows no such pool yet, since none of its workers has registered: give --model or "
            "LORAYARD_MODEL the base's folder, or start a worker"
        )
    if len(rows) == 1:
        return PoolOfAdapters.registered(settings, rows[0])
    fitting, whys = [], []
    for row in rows:
        try:
            pool = PoolOfAdapters.registered(settings, row)
            _try_all(pool, adapters, base_name)
        except (LorayardError, EngineError, OSError) as error:
            whys.append(f"{row.model_name} (pool {row.pool}): {error}")
        else:
            fitting.append((row, pool))
    if len(fitting) == 1:
        return fitting[0][1]
    if fitting:
        raise LorayardError(f"{len(fitting)} pools fit, {listed([row for row, _ in fitting])}")
    raise LorayardError("no pool fits\n" + "\n".join(f"- {why}" for why in whys))


def add_adapters(
    database: Database,
    store: AdapterStore,
    pool: PoolOfAdapters,
    adapters: Sequence[tuple[str, Path]],  # name and folder of each
    *,
    base_name: str | None = None,
    new_store: bool = False,
) -> Iterator[tuple[str, AdapterDescription]]:
    """Check all adapters, then copy each into the store and make it the current revision of its name.

    `base_name` is what their base is called, whatever their own files say; with `new_store` the store is made
    although the pool has adapters in one. Raises LorayardError for a name or a store that is not there, the
    AdapterError that fits for files, both before anything has changed, and DatabaseUnavailable.
    """
    names = [name for name, _ in adapters]
    for name in names:
        check_name(name)
        if names.count(name) > 1:
            raise LorayardError(f"{name} is given twice; a name has one current revision: leave one out")
    found = _try_all(pool, adapters, base_name)
    is_first = not database.run(lambda c: AdapterRepository(c).has_files(pool.pool))
    store.open(may_be_new=new_store or is_first)
    for name, path, description in found:
        _add(database, store, pool.pool, name, path, description)
        yield name, description


def _try_all(
    pool: PoolOfAdapters, adapters: Sequence[tuple[str, Path]], base_name: str | None
) -> list[tuple[str, Path, AdapterDescription]]:
    return [
        (name, path, try_adapter(LoRARequest(name, 1, str(path), base_model_name=base_name), pool.spec))
        for name, path in adapters
    ]


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
