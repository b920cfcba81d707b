"""`lorayard workers`: who serves, and on what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import show_rows

if TYPE_CHECKING:
    from db.records import WorkerRow

_COLUMNS = (
    "worker", "pool", "state", "device", "card", "memory_bytes", "driver", "torch", "lease_left_s", "reason",
)  # fmt: skip


def workers(as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False) -> None:
    """List the workers of all pools that have neither left nor been given up."""
    with open_ledger() as database:
        from db.repositories.workers import WorkerRepository

        listed = database.run(lambda connection: WorkerRepository(connection).listed())
    show_rows(
        [_shown(row) for row in listed],
        _COLUMNS,
        as_json=as_json,
        none="no worker is registered: `lorayard up` or `python -m workers` starts some",
    )


def _shown(row: WorkerRow) -> dict[str, Any]:
    """An unhealthy worker gets no jobs, a canary one at a time, for the `reason` that is told."""
    device = row.device
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
        "reason": row.reason or (row.canary.reason if row.canary else None),
    }
