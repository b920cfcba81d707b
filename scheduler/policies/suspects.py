"""Waiting suspects in their groups: the group that was tried least comes first."""

from __future__ import annotations

from uuid import UUID

from scheduler.policies.types import PendingJob


class SuspectGroups:
    """Mutable: suspects are few, so they are sorted anew at each look."""

    def __init__(self) -> None:
        self._groups: dict[UUID, dict[UUID, PendingJob]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, job: PendingJob) -> None:
        """Let a suspect wait in its group."""
        assert job.group is not None, "only suspects have a group"
        self._groups.setdefault(job.group, {})[job.job_id] = job

    def remove(self, job: PendingJob) -> None:
        """Take a suspect out."""
        assert job.group is not None, "only suspects have a group"
        group = self._groups[job.group]
        del group[job.job_id]
        if not group:
            del self._groups[job.group]

    def in_order(self) -> list[list[PendingJob]]:
        """List the groups, those first whose jobs were tried least, so that both halves have their turn.

        So an innocent half shows that its host is sound before the guilty one ends another engine there.
        """
        groups = [sorted(group.values(), key=lambda job: job.order) for group in self._groups.values()]
        return sorted(groups, key=lambda group: (min(job.attempt for job in group), group[0].order))
