"""Serves base and adapters through the whole pipeline in bfloat16, and counts the right answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from db import Database
from examples.demo.stage import add_adapters, await_catalogue, running
from examples.real.folders import Folders
from examples.real.tasks import TASKS, Chat, Exchange, held_out
from examples.real.training import MAX_RANK
from lorayard import Client, JobSpec
from lorayard.local import Stack, StackConfig

MAX_TOKENS = 32
JOBS_PER_TASK = 20
PATIENCE_S = 600.0
LEAST_RIGHT = 0.9  # of an adapter's answers; the base may have as many of the same right as this leaves

console = Console()


@dataclass(frozen=True, slots=True)
class Tally:
    """How one task went: held-out examples, asked of its adapter and of the base."""

    task: str
    examples: Sequence[Exchange]
    outputs: Mapping[Chat, str | None]

    def right(self, adapter: str | None) -> int:
        """Count the right answers of an adapter, or of the base."""
        return sum(self.outputs[Chat(adapter, each.text)] == each.answer for each in self.examples)

    def problems(self) -> list[str]:
        """Name what the adapter did not change as it should have; an empty list is a good run."""
        right, bare, asked = self.right(self.task), self.right(None), len(self.examples)
        found = []
        if right < LEAST_RIGHT * asked:
            found.append(f"{self.task}: {right} of {asked} answers are right: train it for more steps")
        if bare > (1 - LEAST_RIGHT) * asked:
            found.append(f"{self.task}: the base has {bare} of {asked} right: the adapter's prove nothing")
        return found

    def last_line(self) -> str:
        """Summarise the task for people and for scripts."""
        asked = len(self.examples)
        return f"real: {self.task} right={self.right(self.task)}/{asked} by_base={self.right(None)}/{asked}"


def serve(folders: Folders) -> int:
    """Run the stack, ask everything and show it; returns 0 only if every adapter did its work."""
    # The folder must be reachable by the user that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="lorayard-real-") as folder:
        Path(folder).chmod(0o711)
        with running(Stack(stack_config(Path(folder) / "state", folders)), console) as stack:
            tallies = run(stack, folders)
    console.print(samples_table(tallies))
    problems = [problem for tally in tallies for problem in tally.problems()]
    for problem in problems:
        console.print(f"[bold red]problem:[/] {problem}", highlight=False)
    for tally in tallies:
        console.print(tally.last_line(), highlight=False, soft_wrap=True)
    return 1 if problems else 0


def stack_config(state_dir: Path, folders: Folders) -> StackConfig:
    """Describe a stack with one CPU worker on the real model, in bfloat16."""
    return StackConfig(
        state_dir=state_dir,
        model=folders.base,
        dtype="bfloat16",
        num_workers=1,
        max_num_seqs=16,
        max_loras=len(folders.adapters),
        max_cpu_loras=len(folders.adapters),
        max_lora_rank=MAX_RANK,
        max_model_len=512,
    )


def run(stack: Stack, folders: Folders) -> list[Tally]:
    """Add the adapters and ask them, and the base, about the same held-out examples."""
    env = stack.client_env()
    database = Database(env["LORAYARD_DATABASE_URL"], name="lorayard-real")
    try:
        add_adapters(database, env, folders.adapters, model=folders.base, max_rank=MAX_RANK)
    finally:
        database.dispose()
    examples = {name: held_out(task, JOBS_PER_TASK) for name, task in TASKS.items()}
    chats = [Chat(who, each.text) for name in TASKS for each in examples[name] for who in (name, None)]
    with Client(env["LORAYARD_REDIS_URL"]) as client, console.status(f"answering {len(chats)} chats …"):
        await_catalogue(client, folders.adapters)
        outputs = ask(client, chats)
    return [Tally(name, examples[name], outputs) for name in TASKS]


def ask(client: Client, chats: Sequence[Chat]) -> dict[Chat, str | None]:
    """Submit every chat at once and return what came back. Raises JobFailed, ResultTimeout."""
    specs = [
        JobSpec(messages=chat.messages, adapter=chat.adapter, max_tokens=MAX_TOKENS, temperature=0.0)
        for chat in chats
    ]
    handles = client.submit_many(specs)
    return {chat: handle.result(PATIENCE_S).output for chat, handle in zip(chats, handles, strict=True)}


def samples_table(tallies: Sequence[Tally]) -> Table:
    """Show one example per task with both answers."""
    table = Table(title="Answers", title_justify="left", show_lines=True)
    for heading in ("asked", "adapter", "its answer", "the base's answer"):
        table.add_column(heading)
    for tally in tallies:
        text = tally.examples[0].text
        table.add_row(
            text, tally.task, tally.outputs[Chat(tally.task, text)], tally.outputs[Chat(None, text)]
        )
    return table
