"""Puts the verbs together. A verb's module is imported once that verb is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from lorayard.cli.output import printable
from lorayard.process.variables import unknown_variables

VERBS: Final = {
    "up": "Start Redis, Postgres, scheduler, workers, webhook relay and Flower; Ctrl-C stops them in order.",
    "submit": "Submit one job and print its output; status 1 if it does not succeed.",
    "jobs": "List recent jobs, or show one.",
    "usage": "Show what adapters or tenants used.",
    "queue": "Count the jobs that wait and those that workers have, and show what is paused.",
    "pause": "Have queued jobs wait; those that workers have go on.",
    "resume": "Let paused jobs go on.",
    "workers": "Who serves, and on what.",
    "tenants": "Shares and quotas of tenants.",
    "adapters": "Add, list and remove adapters.",
    "ledger": "Which ledger Redis serves.",
    "webhooks": "Secrets and replays of webhooks.",
}
"""What `lorayard --help` says of each verb, as the verb's own help does."""

# Elsewhere than in the module of the verb's name.
_MODULES: Final = {"pause": "queue", "resume": "queue"}
# Verbs with verbs of their own are called `app` in a module of that name.
_GROUPS: Final = frozenset({"workers", "tenants", "adapters", "ledger", "webhooks"})


class _Verbs(TyperGroup):
    """The verbs, each imported when it is run: `--version` and `--help` need none of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else loaded(name), rest


def loaded(verb: str) -> Any:
    """Import a verb; return its command."""
    module = import_module(f"lorayard.cli.{_MODULES.get(verb, verb)}")
    found = getattr(module, "app" if verb in _GROUPS else verb)
    if isinstance(found, typer.Typer):
        command = get_group(found)
        command.name = verb
        return command
    alone = typer.Typer(add_completion=False)
    alone.command(verb)(found)
    return get_command(alone)


app = typer.Typer(
    cls=_Verbs,
    name="lorayard",
    help="A switchyard for LoRA jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from lorayard.contract.version import RELEASE

        typer.echo(f"lorayard {RELEASE}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the release and exit."),
    ] = False,
) -> None:
    pass


def _not_loaded() -> None:
    raise AssertionError("the verb itself runs, not its place in the list")


for _verb, _summary in VERBS.items():
    app.command(_verb, help=_summary)(_not_loaded)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with this process's arguments, or those given, and exit with its status."""
    for unknown in unknown_variables(os.environ):
        typer.secho(f"warning: {printable(unknown)}", err=True, fg="yellow")
    try:
        app(None if arguments is None else list(arguments))
    except Exception as error:
        from lorayard.cli.plain_errors import plain_message

        message = plain_message(error)
        if message is None:
            raise
        typer.secho(f"error: {printable(message)}", err=True, fg="red")
        sys.exit(1)
