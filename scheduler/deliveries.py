"""Remembers jobs whose messages did not arrive: how long each is waited for, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

FIRST_PATIENCE_S: Final = 3.0
MAX_PATIENCE_S: Final = 48.0
"""So long a job may stay out of its worker's lists: doubled with each message of it that was lost."""

MAX_LOST: Final = 6
"""So many messages of a job lost, and it is undeliverable."""


class Deliveries:
    """Mutable: counts the lost messages of each job; that any worker lists it, or that it ends, clears it.

    Only of this process: another leader begins to count anew, with the shortest patience.
    """

    def __init__(self) -> None:
        self._num_lost: dict[UUID, int] = {}

    def __len__(self) -> int:
        return len(self._num_lost)

    def patience_s(self, job_id: UUID) -> float:
        """Tell how long after its dispatch a job may stay unlisted."""
        doublings = self._num_lost.get(job_id, 0)
        return min(MAX_PATIENCE_S, FIRST_PATIENCE_S * 2.0**doublings)

    def goes_alone(self, job_id: UUID) -> bool:
        """Whether a message of the job was lost, maybe by its own fault: the next one carries it alone."""
        return job_id in self._num_lost

    def lost(self, job_ids: Iterable[UUID]) -> list[UUID]:
        """Count a lost message of each job; returns those that are undeliverable by now."""
        given_up = []
        for job_id in job_ids:
            self._num_lost[job_id] = self._num_lost.get(job_id, 0) + 1
            if self._num_lost[job_id] >= MAX_LOST:
                given_up.append(job_id)
        return given_up

    def arrived(self, job_ids: Iterable[UUID]) -> None:
        """Forget what was lost of jobs that a worker has listed, or that have ended."""
        if self._num_lost:
            for job_id in job_ids:
                self._num_lost.pop(job_id, None)
