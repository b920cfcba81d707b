"""Which pool a command about adapters means: the one that it is told, or those that the ledger knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from db import Database
from db.records import ListedAdapter, PoolRow
from db.repositories.adapters import AdapterRepository
from db.repositories.pools import PoolRepository
from lorayard.cli.settings import PoolSettings
from lorayard.contract.errors import LorayardError, UnknownAdapter
from lorayard.contract.pool import pool_id

_POOL_ID = re.compile("[0-9a-f]{16}")


def known_pools(database: Database, settings: PoolSettings) -> list[PoolRow]:
    """Return the pools that the ledger knows, or those of the id or name that stands for a folder."""
    rows = database.run(lambda connection: PoolRepository(connection).listed())
    if settings.model is None:
        return rows
    told = str(settings.model)
    return [row for row in rows if told in (row.pool, row.model_name)]


def told_pool(database: Database, settings: PoolSettings) -> str | None:
    """Return the id of the pool that `--model` or LORAYARD_MODEL names, None if there is neither.

    Both take a folder, a pool's id, or a model's name as the ledger knows it. Raises LorayardError for what
    is none of these, and FileNotFoundError for a folder that holds no checkpoint.
    """
    model = settings.model
    if model is None:
        return None
    if (pool := settings.pool) is not None:
        return pool
    found = known_pools(database, settings)
    if not found and _POOL_ID.fullmatch(str(model)):
        return str(model)  # one without a worker so far
    if len(found) == 1:
        return found[0].pool
    if found:
        raise LorayardError(f"{str(model)!r} names several pools, {listed(found)}")
    raise LorayardError(
        f"{str(model)!r} is neither a folder nor a pool or a model that the ledger knows: give --model or "
        "LORAYARD_MODEL the base's folder, or what `lorayard adapters list` shows of its pool"
    )


def listed_adapters(database: Database, settings: PoolSettings) -> list[ListedAdapter]:
    """Return the adapters of the pool that is told, else those of all pools."""
    pool = told_pool(database, settings)
    return database.run(lambda connection: AdapterRepository(connection).listed(pool))


def pool_of_adapter(database: Database, settings: PoolSettings, name: str) -> str:
    """Return the pool that is told, else the one that serves an adapter of this name."""
    if (told := told_pool(database, settings)) is not None:
        return told
    found = [one for one in listed_adapters(database, settings) if one.name == name]
    if not found:
        raise UnknownAdapter(
            f"no pool serves an adapter named {name!r}: `lorayard adapters list` shows those that are served"
        )
    if len(found) > 1:
        choices = "; ".join(
            f"--model {one.pool} ({one.model_name or 'a model without workers'})" for one in found
        )
        raise LorayardError(f"several pools serve an adapter named {name!r}, say which one: {choices}")
    return found[0].pool


def listed(rows: Sequence[PoolRow]) -> str:
    """List pools for a message, each with the `--model` that means it."""
    return "say which one: " + "; ".join(
        f"--model {row.pool} ({row.model_name} of {row.model_path}, {row.dtype}"
        f"{'' if row.generation_config == 'auto' else ', generation_config ' + row.generation_config})"
        for row in rows
    )


def folder_of(row: PoolRow) -> Path | None:
    """Return a pool's model folder if it is here and has not changed, None if it is elsewhere.

    Raises LorayardError if it has become another model since a worker registered.
    """
    folder = Path(row.model_path)
    if not folder.is_dir():
        return None
    now = pool_id(folder, row.dtype, generation_config=row.generation_config)
    if now != row.pool:
        raise LorayardError(
            f"{folder} has become another model (pool {now}) since a worker registered for pool {row.pool}: "
            "give --model the folder of its base"
        )
    return folder
