"""`python -m examples.demo`: starts everything, asks, checks with five witnesses, and takes it all down."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from db import Database
from db.records import UsageRow
from db.repositories.usage import UsageRepository
from examples.demo.flower import count_succeeded
from examples.demo.outcome import Answered, Outcome
from examples.demo.receiver import Receiver, serve
from examples.demo.stage import add_shipped_adapters, await_catalogue, running, stack_config, webhook_secrets
from examples.demo.tables import answers_table, usage_table
from examples.demo.workload import Question, questions
from lorayard import Client, JobHandle, as_completed
from lorayard.local import Stack

PATIENCE_S = 120.0
SETTLE_S = 30.0

console = Console()


def main() -> int:
    """Run the demo; returns the exit status: 0 only if nothing was lost, wrong or unverified."""
    # A plain `kill` takes the stack down in order, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    receiver = Receiver()
    # The folder must be reachable by the user that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="lorayard-demo-") as folder, serve(receiver):
        Path(folder).chmod(0o711)
        with running(Stack(stack_config(Path(folder) / "state")), console) as stack:
            outcome = run(stack, receiver)
    for problem in outcome.problems():
        console.print(f"[bold red]problem:[/] {problem}", highlight=False)
    console.print(outcome.last_line(), highlight=False, soft_wrap=True)
    return 1 if outcome.problems() else 0


def run(stack: Stack, receiver: Receiver) -> Outcome:
    """Ask all questions, and then all witnesses."""
    env = stack.client_env()
    database = Database(env["LORAYARD_DATABASE_URL"], name="lorayard-demo")
    try:
        with console.status("adding ten adapters, each checked and stored by its content …"):
            add_shipped_adapters(database, env)
            receiver.trust(webhook_secrets(database, env))
        asked = questions(receiver.url)
        with Client(env["LORAYARD_REDIS_URL"]) as client:
            await_catalogue(client)
            began = time.monotonic()
            answered = ask(client, asked)
            wall_s = time.monotonic() - began
        with console.status("waiting for the last webhooks and events …"):
            _await_webhooks(receiver, len(asked))
            flower_succeeded = count_succeeded(stack.flower.url, len(asked), SETTLE_S)
        usage = database.run(lambda connection: UsageRepository(connection).report("adapter", 3600.0))
    finally:
        database.dispose()
    console.print(answers_table(answered))
    console.print(usage_table(usage))
    return _outcome(asked, answered, wall_s, usage, flower_succeeded, receiver)


def ask(client: Client, asked: list[Question]) -> list[Answered]:
    """Submit everything at once and collect the results as they come."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("jobs", total=len(asked))
        handles = client.submit_many([question.spec for question in asked])
        by_id = dict(zip((handle.id for handle in handles), asked, strict=True))
        answered = []
        for handle in _until_patience_ends(handles):
            answered.append(Answered(by_id[handle.id], handle.result(0, raise_on_failure=False)))
            progress.advance(bar)
    return answered


def _until_patience_ends(handles: list[JobHandle]) -> Iterable[JobHandle]:
    """Yield ended jobs; what has not ended in time counts as lost, and the summary says so."""
    try:
        yield from as_completed(handles, PATIENCE_S)
    except TimeoutError as error:
        console.print(f"[bold red]{error}[/]")


def _await_webhooks(receiver: Receiver, expected: int) -> None:
    deadline = time.monotonic() + SETTLE_S
    while len(receiver.states) < expected and time.monotonic() < deadline:
        time.sleep(0.1)


def _outcome(
    asked: list[Question],
    answered: list[Answered],
    wall_s: float,
    usage: list[UsageRow],
    flower_succeeded: int,
    receiver: Receiver,
) -> Outcome:
    return Outcome(
        asked=len(asked),
        answered=answered,
        wall_s=wall_s,
        ledger_jobs=sum(row.jobs for row in usage),
        ledger_tokens=sum(row.completion_tokens for row in usage),
        flower_succeeded=flower_succeeded,
        receiver=receiver,
    )


if __name__ == "__main__":
    sys.exit(main())
