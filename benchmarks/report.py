"""Lays the tournament's results out as one table, for a terminal and for a markdown file alike."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.entries import OURS
from benchmarks.tournament import Result, first_token_agreement

Row = list[str]


def to_markdown(title: str, facts: dict[str, str], results: list[Result]) -> str:
    """Return the whole report."""
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items() if value),
        "Output tokens per second, best round (all rounds below).",
        table(_speed_rows(results)),
        "\n".join(f"- {line}" for line in _ratios(results)),
        "Every round; *others* is the share of the machine's time that other processes took in the best one.",
        table(_round_rows(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _speed_rows(results: list[Result]) -> list[Row]:
    counts = sorted({result.entry.num_adapters for result in results})
    best = _best(results)
    rows = [["system", *map(_column, counts), *(f"keeps with {count}" for count in counts if count)]]
    for system in dict.fromkeys(result.entry.system for result in results):
        speeds = [_number(best.get((system, count))) for count in counts]
        kept = [_kept(best, system, count) for count in counts if count]
        rows.append([system, *speeds, *kept])
    return rows


def _round_rows(results: list[Result]) -> list[Row]:
    agreement = first_token_agreement(results)
    rows = [["entry", "tok/s", "others", "first tokens equal to ours"]]
    for result in results:
        speeds = ", ".join(f"{speed:.0f}" for speed in result.speeds)
        equal = agreement.get((result.entry.system, result.entry.num_adapters))
        shown = "" if equal is None else f"{equal:.0%}"
        rows.append([result.entry.label, speeds, f"{result.foreign_share:.0%}", shown])
    return rows


def _ratios(results: list[Result]) -> Iterable[str]:
    best = _best(results)
    for count in sorted({result.entry.num_adapters for result in results}):
        ours = best.get((OURS, count))
        for system in dict.fromkeys(result.entry.system for result in results):
            theirs = best.get((system, count))
            if ours is not None and theirs is not None and system != OURS:
                yield f"{_column(count)}: {OURS} is {ours / theirs:.2f} x {system}"
    kept = [(count, best[OURS, count] / best[OURS, 0]) for _, count in sorted(best) if (OURS, count) in best]
    for count, share in dict(kept).items() if (OURS, 0) in best else ():
        if count:
            yield f"{_column(count)}: {OURS} keeps {share:.2f} of its own base speed"


def _best(results: list[Result]) -> dict[tuple[str, int], float]:
    return {(result.entry.system, result.entry.num_adapters): result.best for result in results}


def _kept(best: dict[tuple[str, int], float], system: str, count: int) -> str:
    base, speed = best.get((system, 0)), best.get((system, count))
    return "" if base is None or speed is None else f"{speed / base:.0%}"


def _column(num_adapters: int) -> str:
    return f"{num_adapters} adapters" if num_adapters else "base only"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def table(rows: list[Row]) -> str:
    """Return a markdown table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
