"""The content-addressed adapter store, and how an adapter gets into it and into the catalogue."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from db import Database
from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
from lorayard.contract.errors import LorayardError
from lorayard.contract.job import Name
from lorayard.contract.pool import GenerationConfigUse, pool_id
from lorayard.server.adapter_store import revision_folder
from workers.engine.core.errors import AdapterError
from workers.engine.lora import AdapterDescription, adapter_digest, describe_base, validate_adapter
from workers.engine.lora.files.adapter_files import find_files

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


def add_adapter(
    database: Database,
    store: AdapterStore,
    *,
    model: Path,
    dtype: str,
    name: str,
    path: Path,
    max_rank: int,
    served_model_name: str | None = None,
    generation_config: GenerationConfigUse = "auto",
) -> AdapterDescription:
    """Check an adapter, copy it into the store and make it the current revision of its name.

    Raises LorayardError for the name, the AdapterError that fits for the files, DatabaseUnavailable.
    """
    check_name(name)
    base = describe_base(model, name=served_model_name)
    found = validate_adapter(path, base=base, max_rank=max_rank, name=name)
    # First, so that a revision about to be collected is kept from it, or its files are put back below.
    database.run(lambda connection: AdapterRepository(connection).keep(found.digest))
    store.put(path, found.digest)
    row = RevisionRow(digest=found.digest, rank=found.rank, targets=found.targets, bytes=found.bytes)
    pool = pool_id(model, dtype, generation_config=generation_config)
    database.run(lambda connection: AdapterRepository(connection).add_revision(pool, name, row))
    return found


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
