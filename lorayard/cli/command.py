"""Puts the verbs together."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from lorayard.cli import adapters, jobs, ledger, queue, submit, tenants, up, usage, webhooks, workers
from lorayard.cli.output import printable
from lorayard.cli.plain_errors import plain_message
from lorayard.process.variables import unknown_variables

app = typer.Typer(
    name="lorayard",
    help="A switchyard for LoRA jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("submit")(submit.submit)
app.command("jobs")(jobs.jobs)
app.command("usage")(usage.usage)
app.command("queue")(queue.queue)
app.add_typer(queue.pause, name="pause")
app.add_typer(queue.resume, name="resume")
app.add_typer(workers.app, name="workers")
app.add_typer(tenants.app, name="tenants")
app.add_typer(adapters.app, name="adapters")
app.add_typer(ledger.app, name="ledger")
app.add_typer(webhooks.app, name="webhooks")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with this process's arguments, or those given, and exit with its status."""
    for unknown in unknown_variables(os.environ):
        typer.secho(f"warning: {printable(unknown)}", err=True, fg="yellow")
    try:
        app(None if arguments is None else list(arguments))
    except Exception as error:
        message = plain_message(error)
        if message is None:
            raise
        typer.secho(f"error: {printable(message)}", err=True, fg="red")
        sys.exit(1)
