"""`lorayard webhooks`: signing secrets, and webhooks that were given up."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import counted, show_rows
from lorayard.cli.tenants import check_known, check_name
from lorayard.contract.errors import LorayardError

if TYPE_CHECKING:
    from db import Database

app = typer.Typer(help="Secrets and replays of webhooks.", no_args_is_help=True)


@app.command("secret")
def secret(
    tenant: Annotated[str, typer.Argument(help="Whose webhooks it signs.")],
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; the one before still signs as well.")
    ] = False,
    end_rotation: Annotated[
        bool, typer.Option("--end-rotation", help="Sign with the newest one only from now on.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Enter the tenant if it is not known yet.")] = False,
) -> None:
    """Print the secrets that sign a tenant's webhooks, the newest first; the first call makes one."""
    with open_ledger() as database:
        for text in webhook_secrets(database, tenant, rotate=rotate, end_rotation=end_rotation, new=new):
            typer.echo(text)


@app.command("list")
def list_dead(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List the webhooks that were given up."""
    from db.repositories.webhooks import WebhookRepository

    with open_ledger() as database:
        dead = database.run(lambda connection: WebhookRepository(connection).recent(limit, "dead"))
    columns = ("id", "job_id", "tenant", "url", "tries", "status", "error")
    show_rows([asdict(row) for row in dead], columns, as_json=as_json, none="no webhook was given up")


@app.command("replay")
def replay(
    delivery_ids: Annotated[list[UUID] | None, typer.Argument(help="Ids from `webhooks list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were given up.")] = False,
) -> None:
    """Send webhooks that were given up again, from the first try."""
    if every == bool(delivery_ids):
        raise typer.BadParameter("name the webhooks by id, or give --all")
    from db.repositories.webhooks import WebhookRepository

    with open_ledger() as database:
        count = database.run(lambda connection: WebhookRepository(connection).replay(delivery_ids or None))
    if delivery_ids and count < len(set(delivery_ids)):
        raise LorayardError(
            f"{count} of {counted(len(set(delivery_ids)), 'webhook')} sent again, the others were not given "
            "up: `lorayard webhooks list` shows those that were"
        )
    typer.echo(f"{counted(count, 'webhook')} sent again")


def webhook_secrets(
    database: Database, tenant: str, *, rotate: bool = False, end_rotation: bool = False, new: bool = False
) -> list[str]:
    """Read a tenant's secrets in clear, the newest first; makes, rotates or ends a rotation before.

    Raises LorayardError for a tenant that is not known, unless `new`.
    """
    from db.repositories.tenants import TenantRepository
    from db.secrets import SecretBox
    from db.settings import SecretSettings

    check_name(tenant)
    try:
        box = SecretBox(SecretSettings().keys)
    except ValueError as error:
        raise LorayardError(str(error)) from error
    with database.transaction() as connection:
        tenants = TenantRepository(connection)
        if not new:
            check_known(tenant, [row.name for row in tenants.all()])
        is_new = not tenants.webhook_secrets(tenant)
        tenants.ensure(tenant, box.seal_new)
        if rotate and not is_new:
            tenants.set_webhook_secret(tenant, box.seal_new())
        if end_rotation:
            tenants.drop_previous_secret(tenant)
        return [box.decrypt(sealed) for sealed in tenants.webhook_secrets(tenant)]
