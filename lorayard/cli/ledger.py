"""The ledger as verbs open it, and `lorayard ledger`: which ledger Redis serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import typer

from lorayard.cli.settings import LedgerSettings
from lorayard.contract.errors import LorayardError

if TYPE_CHECKING:
    from db import Database

app = typer.Typer(help="Which ledger Redis serves.", no_args_is_help=True)


@contextmanager
def open_ledger(settings: LedgerSettings | None = None) -> Iterator[Database]:
    """Open the ledger that the environment names, for the time of one verb."""
    settings = settings or LedgerSettings()
    from db.database import MAX_HOLD_MS, Database

    # Ctrl-Z must not hold up the leader for longer than a process of the pipeline may.
    url = settings.database_url.get_secret_value()
    database = Database(url, pool_size=1, max_idle_ms=MAX_HOLD_MS, name="lorayard-cli")
    try:
        yield database
    finally:
        database.dispose()


@app.command("adopt")
def adopt() -> None:
    """Take over this ledger's pools that Redis has for another one, whose schedulers have been stopped."""
    from db.repositories.terms import TermRepository
    from lorayard.client.settings import client_settings
    from lorayard.transport.redis_link import RedisLink
    from scheduler.adoption import adopt as adopt_pool

    with open_ledger() as database:
        ledger, pools = database.run(lambda c: (TermRepository(c).ledger_id(), TermRepository(c).pools()))
    if not pools:
        raise LorayardError(
            "no scheduler has run on this ledger: start one; a pool that no ledger has is its at once"
        )
    url, timeout_s = client_settings()
    link = RedisLink(url, timeout_s)
    with closing(link), link.reaching(sends=False):
        for pool in pools:
            found = adopt_pool(link.commands, pool, ledger)
            if found.is_led:
                raise LorayardError(
                    f"pool {pool} is led by a scheduler of the ledger {found.before}: stop that, then adopt"
                )
            typer.echo(f"{pool}: {_told(found.before, str(ledger))}")


def _told(before: str | None, ours: str) -> str:
    if before is None:
        return "no ledger has it, the first scheduler that starts takes it"
    return "of this ledger already" if before == ours else f"taken over from the ledger {before}"
