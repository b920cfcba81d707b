"""`lorayard workers`: who serves, and on what; and how one is sent away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import counted, show_rows
from lorayard.contract.errors import LorayardError

if TYPE_CHECKING:
    from db.records import StoreFailureRow, WorkerRow

_COLUMNS = (
    "worker", "pool", "state", "device", "card", "memory_bytes", "driver", "torch", "lease_left_s", "reason",
)  # fmt: skip


app = typer.Typer(help="Who serves, and on what.")


@app.callback(invoke_without_command=True)
def workers(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List the workers of all pools that have neither left nor been given up."""
    if context.invoked_subcommand is not None:
        return
    with open_ledger() as database:
        from db.repositories.store_failures import StoreFailureRepository
        from db.repositories.workers import WorkerRepository

        listed = database.run(lambda connection: WorkerRepository(connection).listed())
        pools = {row.pool for row in listed}
        failing = database.run(lambda c: {pool: StoreFailureRepository(c).cooling(pool) for pool in pools})
    show_rows(
        [_shown(row, [one for ones in failing[row.pool].values() for one in ones]) for row in listed],
        _COLUMNS,
        as_json=as_json,
        none="no worker is registered: `lorayard up` or `python -m workers` starts some",
    )


@app.command("drain")
def drain(
    name: Annotated[str, typer.Argument(help="As `lorayard workers` shows it, or the first letters of it.")],
) -> None:
    """Have a worker take no more jobs, finish or give back what it holds, and end."""
    with open_ledger() as database:
        from db.repositories.workers import WorkerRepository

        worker = named_worker(database.run(lambda connection: WorkerRepository(connection).listed()), name)
        if not database.run(lambda c: WorkerRepository(c).set_state(worker.incarnation, "draining")):
            raise LorayardError(f"worker {worker.hostname} has left meanwhile: there is nothing to drain")
    typer.echo(f"{worker.hostname} takes no more jobs, and ends once it holds none")


def named_worker(listed: Sequence[WorkerRow], name: str) -> WorkerRow:
    """Find the one worker that is meant; raises LorayardError for none, several, and one that has no jobs."""
    exact = [row for row in listed if name in (row.hostname, row.incarnation)]
    found = exact or [row for row in listed if row.hostname.startswith(name)]
    if not found:
        raise LorayardError(f"no worker is named {name!r}: `lorayard workers` shows those that there are")
    if len(found) > 1:
        names = ", ".join(row.hostname for row in found)
        raise LorayardError(f"{name!r} may be several workers, say which one: {names}")
    if found[0].state == "unhealthy":
        raise LorayardError(f"worker {found[0].hostname} is unhealthy and has no jobs: end its process")
    return found[0]


def _shown(row: WorkerRow, failures: Sequence[StoreFailureRow]) -> dict[str, Any]:
    """An unhealthy worker gets no jobs, a canary one at a time, for the `reason` that is told.

    What its store could not give a moment ago it is not asked for.
    """
    device = row.device
    reasons = [row.reason or (row.canary.reason if row.canary else None), _cooling(row.store, failures)]
    return {
        "worker": row.hostname,
        "pool": row.pool,
        "state": "canary" if row.canary and row.state == "ready" else row.state,
        "device": device.device,
        "card": device.device_name,
        "memory_bytes": device.device_memory_bytes,
        "driver": device.driver_version,
        "torch": device.torch_version,
        "lease_left_s": row.lease_left_s,
        "reason": "; ".join(filter(None, reasons)) or None,
    }


def _cooling(store: str, failures: Sequence[StoreFailureRow]) -> str | None:
    """Say what the store of a worker could not give, with the failure that is the latest."""
    here = [failure for failure in failures if failure.store == store]
    if not here:
        return None
    last = min(here, key=lambda failure: failure.failed_ago_s)
    return (
        f"{store} could not give {counted(len(here), 'adapter')}, the last {last.failed_ago_s:.0f} s ago "
        f"({last.code}: {last.reason}): look at the store; `lorayard adapters list` has them all"
    )
