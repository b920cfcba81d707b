"""What was measured, beside what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.plane.stack import Spent
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


class Run(NamedTuple):
    """One system's way with so many jobs, in micro-batches of `batch`."""

    system: str
    batch: int
    num_jobs: int
    seconds: float
    spent: Spent

    @property
    def jobs_per_s(self) -> float:
        """Jobs by the clock on the wall."""
        return self.num_jobs / self.seconds

    @property
    def us_per_job(self) -> float:
        """Processor microseconds of all processes together."""
        return 1e6 * self.spent.total_s / self.num_jobs


def verdicts(figures: Sequence[Figure]) -> str:
    """Lay figures out beside their goals."""
    rows = [["figure", "seen", "goal", ""]]
    for figure in figures:
        said = "" if not figure.goal else "met" if figure.is_met else "MISSED"
        rows.append([figure.name, f"{_number(figure.value)} {figure.unit}".strip(), figure.goal, said])
    return table(rows)


def where_time_goes(runs: Sequence[Run]) -> str:
    """Lay out the processor time of a job by process."""
    names = list(dict.fromkeys(name for run in runs for name in run.spent.by_process))
    rows = [["system", "micro-batch", "jobs/s", "us a job", *names]]
    for run in runs:
        parts = [run.spent.by_process.get(name) for name in names]
        shown = ["" if part is None else f"{1e6 * part / run.num_jobs:.0f}" for part in parts]
        rows.append([run.system, str(run.batch), f"{run.jobs_per_s:.0f}", f"{run.us_per_job:.0f}", *shown])
    return table(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
