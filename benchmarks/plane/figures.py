"""What one system took for so many jobs, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.plane.stack import Spent
from benchmarks.report import table


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


def where_time_goes(runs: Sequence[Run]) -> str:
    """Lay out the processor time of a job by process."""
    names = list(dict.fromkeys(name for run in runs for name in run.spent.by_process))
    rows = [["system", "micro-batch", "jobs/s", "us a job", *names]]
    for run in runs:
        parts = [run.spent.by_process.get(name) for name in names]
        shown = ["" if part is None else f"{1e6 * part / run.num_jobs:.0f}" for part in parts]
        rows.append([run.system, str(run.batch), f"{run.jobs_per_s:.0f}", f"{run.us_per_job:.0f}", *shown])
    return table(rows)
