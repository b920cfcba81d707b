"""`lorayard adapters`: which fine-tuned weights the pool serves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import counted, printable, show_rows
from lorayard.cli.settings import PoolSettings, StoreSettings
from lorayard.contract.errors import LorayardError, UnknownAdapter

app = typer.Typer(help="Add, list and remove adapters.", no_args_is_help=True)
_Settings = TypeVar("_Settings", bound=PoolSettings)


ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="The pool's base, in the place of LORAYARD_MODEL: its folder, or the name or the pool's id that "
        "the ledger has. Without both, the pools that the ledger knows.",
    ),
]


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What jobs will call it.")],
    path: Annotated[Path, typer.Argument(help="The folder with adapter_config.json and safetensors.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME PATH]...", help="More adapters, added as well.")
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(help="What their base is called, whatever their own files say: the name of this base."),
    ] = None,
    new_store: Annotated[
        bool,
        typer.Option(
            "--new-store",
            help="Make LORAYARD_ADAPTER_STORE a store, although the pool has adapters in another one.",
        ),
    ] = False,
    model: ModelOption = None,
) -> None:
    """Check adapters against the base model, keep copies and serve them; a known name gets a new revision.

    All are checked before the first is added. Where several pools fit, --model is required.
    """
    settings = settings_of(StoreSettings, model)
    adapters = [(name, path), *_pairs(more or [])]
    from lorayard.cli.adapter_store import AdapterStore, add_adapters, fitting_pool

    store = AdapterStore(settings.adapter_store)
    with open_ledger(settings) as database:
        pool = fitting_pool(database, settings, adapters, base_name=base_name)
        adding = add_adapters(database, store, pool, adapters, base_name=base_name, new_store=new_store)
        for one, added in adding:
            typer.echo(
                f"{one}: revision {added.digest}, rank {added.rank}, {counted(added.num_modules, 'module')} "
                f"({', '.join(added.targets)}), {added.bytes} bytes"
            )
            for warning in added.warnings:
                typer.secho(f"warning: {one}: {printable(warning)}", err=True, fg="yellow")


@app.command("list")
def list_adapters(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    model: ModelOption = None,
) -> None:
    """List adapters, of all pools or of one: name, state, pool, model, rank, size, revision, warnings.

    One that a store could not give a moment ago is `cooling`: workers with other stores run its jobs, which
    else wait. One that no worker can load is `quarantined`, and tried again each minute.
    """
    settings = settings_of(PoolSettings, model)
    from lorayard.cli.pools import listed_adapters

    with open_ledger(settings) as database:
        entries = listed_adapters(database, settings)
    rows = [
        asdict(entry)
        | {"base": entry.model_path or str(settings.model or ""), "model": entry.model_name or ""}
        for entry in entries
    ]
    columns = ["name", "state", "model", "base", "pool", "rank", "bytes", "revision"]
    columns += [extra for extra in ("reason", "warnings") if as_json or any(row[extra] for row in rows)]
    show_rows(
        rows,
        columns,
        as_json=as_json,
        none=f"{settings.model or 'the ledger'} has no adapters: `lorayard adapters add NAME PATH` adds one",
    )


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="The adapter's name.")], model: ModelOption = None
) -> None:
    """Serve an adapter no longer; jobs admitted before still run."""
    settings = settings_of(PoolSettings, model)
    from db.repositories.adapters import AdapterRepository
    from lorayard.cli.pools import pool_of_adapter

    with open_ledger(settings) as database:
        pool = pool_of_adapter(database, settings, name)
        if not database.run(lambda connection: AdapterRepository(connection).remove(pool, name)):
            raise UnknownAdapter(
                f"pool {pool} serves no adapter named {name!r}: `lorayard adapters list` shows those it does"
            )
    typer.echo(f"{name} is removed")


def settings_of(settings: type[_Settings], model: Path | None) -> _Settings:
    """Read settings from the environment, with the model that an option names in the place of theirs."""
    return settings() if model is None else settings(model=model)


def _pairs(more: list[str]) -> list[tuple[str, Path]]:
    if len(more) % 2:
        raise LorayardError(
            f"{counted(len(more), 'argument')} after the first adapter's name and folder: give each adapter "
            "both, NAME PATH NAME PATH"
        )
    return [(name, Path(path)) for name, path in zip(more[::2], more[1::2], strict=True)]
