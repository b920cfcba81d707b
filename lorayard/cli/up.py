"""`lorayard up`: the whole of Lorayard on this machine, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    state_dir: Annotated[
        Path | None, typer.Option(help="Where Redis, Postgres, adapters and logs live.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="The base model's checkpoint folder.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="How many worker processes; else one a card, on the CPU two.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where workers compute: cpu, cuda (a card each) or cuda:N.")
    ] = None,
    share_gpus: Annotated[
        bool | None, typer.Option("--share-gpus", help="Let several workers use one card.")
    ] = None,
    flower_port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Where Flower listens.")] = None,
) -> None:
    """Start Redis, Postgres, scheduler, workers, webhook relay and Flower; Ctrl-C stops them in order.

    REDIS_URL and DATABASE_URL name running servers to use instead. Everything else that the environment can
    say is in LORAYARD_* variables.
    """
    from lorayard.local import StackSettings
    from lorayard.local import up as run_stack

    chosen = {
        "state_dir": state_dir, "model": model, "num_workers": workers, "flower_port": flower_port,
        "device": device, "share_gpus": share_gpus,
    }  # fmt: skip
    settings = StackSettings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    raise typer.Exit(run_stack(settings))
