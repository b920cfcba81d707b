"""`lorayard adapters`: which fine-tuned weights the pool serves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import show_rows
from lorayard.cli.settings import PoolSettings, StoreSettings
from lorayard.contract.errors import UnknownAdapter

app = typer.Typer(help="Add, list and remove adapters.", no_args_is_help=True)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What jobs will call it.")],
    path: Annotated[Path, typer.Argument(help="The folder with adapter_config.json and safetensors.")],
) -> None:
    """Check an adapter against the base model, keep a copy and serve it; a known name gets a new revision."""
    settings = StoreSettings()
    from lorayard.cli.adapter_store import AdapterStore, add_adapter

    with open_ledger(settings) as database:
        added = add_adapter(
            database,
            AdapterStore(settings.adapter_store),
            model=settings.model,
            served_model_name=settings.served_model_name,
            dtype=settings.dtype,
            generation_config=settings.generation_config,
            name=name,
            path=path,
            max_rank=settings.max_lora_rank,
        )
    typer.echo(
        f"{name}: revision {added.digest}, rank {added.rank}, {added.num_modules} modules "
        f"({', '.join(added.targets)}), {added.bytes} bytes"
    )


@app.command("list")
def list_adapters(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List the adapters of the pool: name, state, base model, rank, size and revision."""
    settings = PoolSettings()
    from db.repositories.adapters import AdapterRepository

    pool = settings.pool
    with open_ledger(settings) as database:
        entries = database.run(lambda connection: AdapterRepository(connection).listed(pool))
    rows = [asdict(entry) | {"base": str(settings.model)} for entry in entries]
    show_rows(
        rows,
        ("name", "state", "base", "rank", "bytes", "revision"),
        as_json=as_json,
        none=f"pool {pool} has no adapters: `lorayard adapters add NAME PATH` adds one",
    )


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="The adapter's name.")]) -> None:
    """Serve an adapter no longer; jobs admitted before still run."""
    settings = PoolSettings()
    from db.repositories.adapters import AdapterRepository

    pool = settings.pool
    with open_ledger(settings) as database:
        if not database.run(lambda connection: AdapterRepository(connection).remove(pool, name)):
            raise UnknownAdapter(
                f"pool {pool} serves no adapter named {name!r}: `lorayard adapters list` shows those it does"
            )
    typer.echo(f"{name} is removed")
