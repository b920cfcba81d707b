"""The states of a job, with every transition that may happen between them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is on its way; `docs/job_states.md` draws the picture."""

    QUEUED = "queued"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        """True when the job will never change again."""
        return self not in (JobState.QUEUED, JobState.LEASED)


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(set(JobState) - {JobState.QUEUED, JobState.SUCCEEDED, JobState.DEAD}),
    JobState.LEASED: frozenset(set(JobState) - {JobState.LEASED}),
} | {state: frozenset() for state in JobState if state.is_terminal}
