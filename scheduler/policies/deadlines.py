"""Deadlines: when a job with one goes first, and when it is hopeless.

Earliest deadline first (Liu and Layland, JACM 20(1), 1973) among the jobs of one tenant that press; before
that they are grouped like all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scheduler.policies.types import PendingJob

PRESSING_SHARE: Final = 0.25
"""So much of its time a job may be passed over for others' adapters; then it goes before them."""


def presses(job: PendingJob, start_by: float, now: float) -> bool:
    """Whether a job that has to start by some time goes before those that are only grouped better."""
    return now >= job.waiting_since + PRESSING_SHARE * (start_by - job.waiting_since)


@dataclass(frozen=True, slots=True)
class FleetOutlook:
    """What a job can hope for: durations in seconds, as measured."""

    first_token_s: float = 0.0
    """From dispatch to the first token, at the very least."""
    output_token_s: float = 0.0
    """Of each token of an answer, on average, waits in its worker's hand included; 0 is not known."""
    num_workers: int = 1
    max_workers: int | None = None
    """LORAYARD_MAX_WORKERS; None: the fleet may grow without limit."""
    worker_start_s: float = 0.0
    """From the begin of a further worker's process until it takes jobs, as those here have measured it."""

    def may_help(self, left_s: float) -> bool:
        """Whether a worker that is started now may take the job in time."""
        can_grow = self.max_workers is None or self.num_workers < self.max_workers
        return can_grow and left_s >= self.worker_start_s


def is_hopeless(job: PendingJob, now: float, outlook: FleetOutlook) -> bool:
    """Whether a job that waits now cannot have its first token in time, whatever is done for it.

    One whose deadline has passed is; one that only a faster start would save is not while the fleet may grow:
    a new worker is idle, and its start may be faster.
    """
    if job.deadline_at is None:
        return False
    left_s = job.deadline_at - now
    return left_s <= 0 or (left_s < outlook.first_token_s and not outlook.may_help(left_s))
