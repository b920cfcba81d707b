"""Lays figures beside their goals, and what explains them below, for a terminal and a markdown file alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.policies.goals import Goal
from benchmarks.policies.measures import Figure, Measured
from benchmarks.report import Row, table

_EXPLAINED = (
    "Medians over all seeds. *Score* is the share of jobs that ended in time, or of SLOs attained; of two "
    "backlogged tenants the drift of their service by its bound."
)


class Judged(NamedTuple):
    """A goal in one case, over all seeds."""

    goal: Goal
    case: str
    middle: float
    worst: float

    @property
    def is_met(self) -> bool:
        """Whether median and worst keep the limit."""
        return self.goal.is_met(self.middle) and self.goal.is_met(self.worst)


def judge(figures: Iterable[Figure]) -> list[Judged]:
    """Hold the figures of all seeds to their goals."""
    cases: dict[tuple[Goal, str], list[float]] = {}
    for figure in figures:
        cases.setdefault((figure.goal, figure.case), []).append(figure.value)
    return [Judged(goal, case, _median(values), goal.worst(values)) for (goal, case), values in cases.items()]


def to_markdown(
    title: str, facts: dict[str, str], judged: Sequence[Judged], measured: Sequence[Measured]
) -> str:
    """Return the whole report."""
    num_met = sum(one.is_met for one in judged)
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items() if value),
        f"## Goals: {num_met} of {len(judged)} met" if judged else "",
        "A goal is met if the median over all seeds and the worst of them keep it.",
        table(_goal_rows(judged)) if judged else "",
        "## Measured",
        _EXPLAINED,
        table(_measured_rows(measured)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _goal_rows(judged: Sequence[Judged]) -> list[Row]:
    rows = [["goal", "case", "limit", "median", "worst", "met"]]
    for goal, case, middle, worst in judged:
        limit = f"{'>=' if goal.is_floor else '<='} {goal.limit:g} {goal.unit}".strip()
        met = "yes" if Judged(goal, case, middle, worst).is_met else "NO"
        rows.append([goal.name, case, limit, _number(middle), _number(worst), met])
    return rows


def _measured_rows(measured: Sequence[Measured]) -> list[Row]:
    head = [
        "workload",
        "policy",
        "tokens/s",
        "wait p50, s",
        "wait p99, s",
        "GB into slots",
        "GB from store",
        "score",
    ]
    rows = [head]
    for (workload, policy), values in medians(measured).items():
        rows.append([workload, policy, *(_number(value, "") for value in values)])
    return rows


def medians(measured: Iterable[Measured]) -> dict[tuple[str, str], list[float]]:
    """Return the medians of all columns over the seeds, by workload and policy."""
    runs: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        runs.setdefault((one.workload, one.policy), []).append(one)
    return {
        key: [_median(list(column)) for column in zip(*(one[2:] for one in found), strict=True)]
        for key, found in runs.items()
    }


def _median(values: list[float]) -> float:
    """Return the median; NaN if one of them is."""
    return math.nan if any(math.isnan(value) for value in values) else median(values)


def _number(value: float, missing: str = "not given") -> str:
    if math.isnan(value):
        return missing
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
