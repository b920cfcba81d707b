"""Jobs coming back from a worker's hand."""

from __future__ import annotations

from dataclasses import dataclass

from db.records.jobs import FinishedJob, JobAttempt


@dataclass(frozen=True, slots=True)
class Released:
    """What became of jobs given back: queued again, or ended because someone had cancelled them."""

    requeued: tuple[JobAttempt, ...] = ()
    finished: tuple[FinishedJob, ...] = ()


@dataclass(frozen=True, slots=True)
class LostJobs:
    """What became of a lost worker's jobs; `finished` holds the dead and those cancelled meanwhile.

    `lost` is False when the worker was not lost after all: it has renewed, or someone was faster.
    """

    lost: bool
    requeued: tuple[JobAttempt, ...] = ()
    finished: tuple[FinishedJob, ...] = ()
