"""The demo's tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean

from rich.table import Table

from db.records import UsageRow
from examples.demo.outcome import Answered

BASE = "(base)"


def answers_table(answered: Iterable[Answered]) -> Table:
    """One row an adapter: a sample, and how its jobs went."""
    table = Table(title="Answers", title_justify="left")
    for heading in ("adapter", "sample prompt -> output"):
        table.add_column(heading)
    for heading in ("jobs", "right", "tokens", "queue ms", "run ms"):
        table.add_column(heading, justify="right")
    groups: defaultdict[str, list[Answered]] = defaultdict(list)
    for answer in answered:
        groups[answer.question.spec.adapter or BASE].append(answer)
    for adapter, group in sorted(groups.items()):
        table.add_row(adapter, *_row(group))
    return table


def _row(group: Sequence[Answered]) -> tuple[str, ...]:
    sample = group[0]
    return (
        f"{sample.question.spec.prompt} -> {sample.result.output}",
        str(len(group)),
        str(sum(answer.right for answer in group)),
        str(sum(answer.result.completion_tokens for answer in group)),
        f"{mean(answer.result.queue_ms or 0.0 for answer in group):.0f}",
        f"{mean(answer.result.run_ms or 0.0 for answer in group):.0f}",
    )


def usage_table(rows: Iterable[UsageRow]) -> Table:
    """What the ledger charges to each adapter."""
    table = Table(title="Usage per adapter, read back from Postgres", title_justify="left")
    table.add_column("adapter")
    for heading in ("jobs", "prompt tokens", "completion tokens", "device ms", "loads", "hits"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: row.adapter or BASE):
        numbers = (
            row.jobs,
            row.prompt_tokens,
            row.completion_tokens,
            round(row.device_ms),
            row.loads,
            row.hits,
        )
        table.add_row(row.adapter or BASE, *map(str, numbers))
    return table
