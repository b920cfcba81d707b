"""`lorayard queue`, `pause` and `resume`: what waits, and what is made to wait."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorayard.cli.adapters import ModelOption, settings_of
from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import show_rows
from lorayard.cli.settings import PoolSettings
from lorayard.cli.tenants import check_known
from lorayard.contract.errors import LorayardError, UnknownAdapter

if TYPE_CHECKING:
    from db import Database
    from db.records import PauseKind, PauseRow, QueuedGroup

pause = typer.Typer(help="Have queued jobs wait; those that workers have go on.", no_args_is_help=True)
resume = typer.Typer(help="Let paused jobs go on.", no_args_is_help=True)
_COLUMNS = ("pool", "tenant", "adapter", "queued", "leased", "oldest_s", "paused")
_Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
_Pool = Annotated[str, typer.Argument(help="Its id, its model's name, or the model's folder.")]
_Tenant = Annotated[str, typer.Argument(help="Its name; it is paused in every pool.")]
_Adapter = Annotated[str, typer.Argument(help="Its name.")]


def queue(as_json: _Json = False) -> None:
    """Count the jobs that wait and those that workers have, and show what is paused."""
    from db.repositories.backlog import BacklogRepository
    from db.repositories.pauses import PauseRepository

    with open_ledger() as database:
        groups, pauses = database.run(lambda c: (BacklogRepository(c).groups(), PauseRepository(c).all()))
    show_rows(
        queue_rows(groups, pauses), _COLUMNS, as_json=as_json, none="no job is queued, nothing is paused"
    )


def queue_rows(groups: Sequence[QueuedGroup], pauses: Sequence[PauseRow]) -> list[dict[str, Any]]:
    """Say of each group of jobs what it is paused by, and of each pause without jobs that it is there."""
    rows = [group._asdict() | {"paused": _paused_by(group, pauses)} for group in groups]
    named = {pause for row in rows for pause in row["paused"]}
    idle = dict.fromkeys(_COLUMNS) | {"queued": 0, "leased": 0}
    for one in pauses:
        if _told(one) not in named:
            pool = {} if one.kind == "tenant" else {"pool": one.pool}
            name = {} if one.kind == "pool" else {one.kind: one.name}
            rows.append(idle | pool | name | {"paused": [_told(one)]})
    return [row | {"paused": "; ".join(row["paused"]) or None} for row in rows]


@pause.command("pool")
def pause_pool(name: _Pool) -> None:
    """Give the workers of a pool no more jobs."""
    with open_ledger() as database:
        _pause(database, "pool", _pool(database, name), name)


@pause.command("tenant")
def pause_tenant(name: _Tenant) -> None:
    """Give no more jobs of a tenant to any worker."""
    from db.records import EVERY_POOL
    from db.repositories.tenants import TenantRepository

    with open_ledger() as database:
        known = database.run(lambda connection: [row.name for row in TenantRepository(connection).all()])
        check_known(name, known, f"`lorayard tenants set {name} --new` to enter it")
        _pause(database, "tenant", EVERY_POOL, name)


@pause.command("adapter")
def pause_adapter(name: _Adapter, model: ModelOption = None) -> None:
    """Give no more jobs of an adapter to any worker of its pool."""
    settings = settings_of(PoolSettings, model)
    from lorayard.cli.pools import listed_adapters, pool_of_adapter

    with open_ledger(settings) as database:
        pool = pool_of_adapter(database, settings, name)
        if name not in {one.name for one in listed_adapters(database, settings) if one.pool == pool}:
            raise UnknownAdapter(
                f"pool {pool} serves no adapter named {name!r}: `lorayard adapters list` shows those it does"
            )
        _pause(database, "adapter", pool, name)


@resume.command("pool")
def resume_pool(name: _Pool) -> None:
    """Let the queued jobs of a pool go on."""
    with open_ledger() as database:
        _resume(database, "pool", name, _pool(database, name))


@resume.command("tenant")
def resume_tenant(name: _Tenant) -> None:
    """Let the queued jobs of a tenant go on."""
    with open_ledger() as database:
        _resume(database, "tenant", name)


@resume.command("adapter")
def resume_adapter(name: _Adapter, model: ModelOption = None) -> None:
    """Let the queued jobs of an adapter go on."""
    settings = settings_of(PoolSettings, model)
    from lorayard.cli.pools import told_pool

    with open_ledger(settings) as database:
        _resume(database, "adapter", name, told_pool(database, settings))


def _pool(database: Database, name: str) -> str:
    from lorayard.cli.pools import told_pool

    pool = told_pool(database, settings_of(PoolSettings, Path(name)))
    assert pool is not None, "a model was told"
    return pool


def _pause(database: Database, kind: PauseKind, pool: str, name: str) -> None:
    from db.repositories.pauses import PauseRepository

    kept = pool if kind == "pool" else name
    is_new = database.run(lambda connection: PauseRepository(connection).pause(kind, pool, kept))
    typer.echo(f"{kind} {name} is paused" if is_new else f"{kind} {name} was paused already")


def _resume(database: Database, kind: PauseKind, name: str, pool: str | None = None) -> None:
    """End the one pause that is meant: an adapter of this name may be paused in several pools."""
    from db.repositories.pauses import PauseRepository

    with database.transaction() as connection:
        pauses = PauseRepository(connection)
        found = [
            row
            for row in pauses.all()
            if row.kind == kind and pool in (None, row.pool) and (kind == "pool" or row.name == name)
        ]
        if not found:
            raise LorayardError(f"{kind} {name!r} is not paused: `lorayard queue` shows what is")
        if len(found) > 1:
            choices = ", ".join(f"--model {row.pool}" for row in found)
            raise LorayardError(f"{kind} {name!r} is paused in several pools, say in which one: {choices}")
        pauses.resume(kind, found[0].pool, found[0].name)
    typer.echo(f"{kind} {name} goes on")


def _paused_by(group: QueuedGroup, pauses: Sequence[PauseRow]) -> list[str]:
    names = {"pool": group.pool, "tenant": group.tenant, "adapter": group.adapter}
    return [
        _told(one)
        for one in pauses
        if one.name == names[one.kind] and (one.kind == "tenant" or one.pool == group.pool)
    ]


def _told(one: PauseRow) -> str:
    return f"{one.kind} {one.name}"
