"""`lorayard tenants`: who may submit, with what share, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import show_rows
from lorayard.contract.errors import LorayardError
from lorayard.contract.job import Name

if TYPE_CHECKING:
    from db import Database
    from db.records import TenantQuota

app = typer.Typer(help="Shares and quotas of tenants.", no_args_is_help=True)
_COLUMNS = ("tenant", "weight", "max_queued_jobs", "max_tokens_per_s", "paused", "has_secret")
NO_LIMIT = "none"
T = TypeVar("T", int, float)


@app.command("list")
def list_tenants(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List all tenants with their share, their quotas, and whether they are paused."""
    from db.records import TenantQuota
    from db.repositories.pauses import PauseRepository
    from db.repositories.tenants import TenantRepository

    with open_ledger() as database:
        tenants, quotas, pauses = database.run(
            lambda c: (TenantRepository(c).all(), TenantRepository(c).quotas(), PauseRepository(c).all())
        )
    limits = {quota.tenant: quota for quota in quotas}
    paused = {row.name for row in pauses if row.kind == "tenant"}
    rows = [
        {
            "weight": row.weight,
            "has_secret": row.has_secret,
            "paused": row.name in paused,
            **limits.get(row.name, TenantQuota(row.name))._asdict(),
        }
        for row in tenants
    ]
    none = "there are no tenants: `lorayard tenants set NAME --new` enters one"
    show_rows(rows, _COLUMNS, as_json=as_json, none=none)


@app.command("set")
def set_tenant(
    name: Annotated[str, typer.Argument(help="Whose.")],
    weight: Annotated[
        float | None, typer.Option(min=0.001, max=1000.0, help="Its share while others wait as well.")
    ] = None,
    max_queued_jobs: Annotated[
        str | None, typer.Option(help="Jobs that it may have queued in a pool, or none for no limit.")
    ] = None,
    max_tokens_per_s: Annotated[
        str | None,
        typer.Option(
            help="Tokens that it may submit per second to a pool (of prompts and max_tokens; a minute's at "
            "once), or none for no limit."
        ),
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Enter the tenant if it is not known yet.")] = False,
) -> None:
    """Set a tenant's share and quotas; what is not named stays as it is."""
    jobs = _limit(max_queued_jobs, "--max-queued-jobs", int)
    tokens = _limit(max_tokens_per_s, "--max-tokens-per-s", float)
    with open_ledger() as database:
        quota = change_tenant(database, name, weight=weight, jobs=jobs, tokens_per_s=tokens, new=new)
    shown = [NO_LIMIT if one is None else f"{one:g}" for one in quota[1:]]
    typer.echo(f"{name}: max_queued_jobs {shown[0]}, max_tokens_per_s {shown[1]}")


def change_tenant(
    database: Database,
    name: str,
    *,
    weight: float | None = None,
    jobs: Sequence[int] | None = None,
    tokens_per_s: Sequence[float] | None = None,
    new: bool = False,
) -> TenantQuota:
    """Change what is given (an empty limit is none), and return the quota as it is then.

    Raises LorayardError for a tenant that is not known, unless `new`.
    """
    from db.records import TenantQuota
    from db.repositories.tenants import TenantRepository

    check_name(name)
    with database.transaction() as connection:
        tenants = TenantRepository(connection)
        if not new:
            check_known(name, [row.name for row in tenants.all()])
        tenants.ensure(name)
        if weight is not None:
            tenants.set_weight(name, weight)
        quota = {row.tenant: row for row in tenants.quotas()}.get(name, TenantQuota(name))
        if jobs is not None:
            quota = quota._replace(max_queued_jobs=next(iter(jobs), None))
        if tokens_per_s is not None:
            quota = quota._replace(max_tokens_per_s=next(iter(tokens_per_s), None))
        tenants.set_quota(quota)
        return quota


def check_name(tenant: str) -> None:
    """Refuse what no job can have as its tenant."""
    try:
        TypeAdapter(Name).validate_python(tenant)
    except ValidationError as error:
        raise LorayardError(
            f"tenant {tenant!r} is not a valid name: use 1 to 200 letters, digits and . _ : / @ + -, "
            "beginning with a letter, a digit or an underscore"
        ) from error


def check_known(tenant: str, known: list[str], entering: str = "--new to enter this one") -> None:
    """Refuse a tenant that nobody has entered: most likely it is mistyped; `entering` says how one would."""
    if tenant in known:
        return
    near = get_close_matches(tenant, known, n=3)
    meant = f"the nearest is {' or '.join(map(repr, near))}" if near else "no name is near it"
    raise LorayardError(
        f"there is no tenant {tenant!r}, {meant} of {len(known)} known: give a known one, or {entering}"
    )


def _limit(text: str | None, option: str, kind: type[T]) -> list[T] | None:
    """Read a limit: None if it is not named, empty for no limit."""
    if text is None or text == NO_LIMIT:
        return None if text is None else []
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not 0 <= value < 2**31 or (kind is float and value == 0):
        least = "0" if kind is int else "above 0"
        raise typer.BadParameter(f"{option} {text!r} is not a limit: give a number from {least}, or none")
    return [value]
