"""One figure beside its goal, for every benchmark that has goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import table


class Figure(NamedTuple):
    """One figure and its goal, which is the least it should be, or the most; without one it only informs."""

    name: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is what it should be."""
        too_low = self.least is not None and self.value < self.least
        return not too_low and not (self.most is not None and self.value > self.most)

    @property
    def goal(self) -> str:
        """Say what it should be."""
        if self.least is not None:
            return f">= {_number(self.least)}"
        return "" if self.most is None else f"<= {_number(self.most)}"


def verdicts(figures: Sequence[Figure]) -> str:
    """Lay figures out beside their goals."""
    rows = [["figure", "seen", "goal", ""]]
    for figure in figures:
        said = "" if not figure.goal else "met" if figure.is_met else "MISSED"
        rows.append([figure.name, f"{_number(figure.value)} {figure.unit}".strip(), figure.goal, said])
    return table(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
