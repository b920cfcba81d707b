"""The room left on workers while one round of planning fills it."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from scheduler.policies.output_length import OutputLengths
from scheduler.policies.overcommit import low_water
from scheduler.policies.types import PendingJob, PlannedBatch, Revision, WorkerView


class AdapterTier(IntEnum):
    """How near an adapter is; the base model is always on the device."""

    DEVICE = 0
    HOST = 1
    COLD = 2


class WorkerBudget:
    """Mutable: one worker's free sequences, tokens and slots, and what the round has planned there."""

    def __init__(self, view: WorkerView, max_batch_jobs: int, lengths: OutputLengths | None = None) -> None:
        """`lengths` tell how many tokens jobs will hold, if that has been learned."""
        self.view = view
        self._lengths = lengths
        self.planned: list[PendingJob] = []
        self.revisions = dict(view.outstanding_revisions)
        self.barred: set[str] = set()
        """Adapters that get no more jobs here, so that their slots come free."""
        self.keeps_to_residents = False
        """It lacks tokens for jobs whose adapters it has, so no other adapter comes for what is left."""
        self.closed = view.runs_alone
        free = view.target_seqs - view.num_outstanding
        if view.num_outstanding >= low_water(view.capacity.max_num_seqs, view.target_seqs):
            free = 0
        if view.is_canary:
            free = 1 if not view.num_outstanding and view.canary_wait_s <= 0 else 0
        self.free_seqs = max(0, min(free, max_batch_jobs))
        lead = max(1.0, view.target_seqs / view.capacity.max_num_seqs)
        self.free_tokens = int(view.capacity.kv_tokens * lead) - view.outstanding_tokens

    @property
    def is_open(self) -> bool:
        """Whether any job might still find room here."""
        return self.free_seqs > 0 and not self.closed

    @property
    def is_empty(self) -> bool:
        """Whether nothing is outstanding or planned here."""
        return not self.view.num_outstanding and not self.planned

    def admits(self, job: PendingJob) -> bool:
        """Whether this worker could ever run the job: rank, length, and its files could be read here."""
        capacity = self.view.capacity
        return (
            job.rank <= capacity.max_lora_rank
            and (job.revision is None or capacity.max_loras > 0)
            and job.prompt_tokens < capacity.max_model_len
            and job.revision not in self.view.cooling
        )

    def has_slot(self, revision: Revision) -> bool:
        """Whether an adapter has a slot here, or one is free for it."""
        if revision is None or revision in self.revisions:
            return True
        return len(self.revisions) < self.view.capacity.max_loras

    def has_tokens(self, job: PendingJob) -> bool:
        """Whether the KV cache holds the job as well; an empty worker takes any that it admits."""
        return self.is_empty or self.tokens(job) <= self.free_tokens

    def fits(self, job: PendingJob) -> bool:
        """Whether the job can be planned here now."""
        return (
            self.is_open
            and (job.revision is None or job.revision not in self.barred)
            and self.has_slot(job.revision)
            and self.admits(job)
            and self.has_tokens(job)
        )

    def tokens(self, job: PendingJob) -> int:
        """Estimate what the job will hold in the KV cache at its end."""
        output = job.max_tokens if self._lengths is None else self._lengths.at_most(job)
        return min(job.prompt_tokens + output, self.view.capacity.max_model_len)

    def tier(self, revision: Revision) -> AdapterTier:
        """Tell how near an adapter is; what was dispatched counts as on the device."""
        if revision is None or revision in self.revisions or revision in self.view.device:
            return AdapterTier.DEVICE
        return AdapterTier.HOST if revision in self.view.host else AdapterTier.COLD

    def at_hand(self, tier: AdapterTier) -> Collection[str]:
        """Name the adapters of a tier that jobs may use now: if no slot is free, those that have one."""
        if len(self.revisions) >= self.view.capacity.max_loras:
            return self.revisions if tier is AdapterTier.DEVICE else ()
        if tier is AdapterTier.DEVICE:
            return [*self.revisions, *self.view.device]
        return [revision for revision in self.view.host if self.tier(revision) is tier]

    def place(self, job: PendingJob) -> None:
        """Plan the job here."""
        self.planned.append(job)
        self.free_seqs -= 1
        self.free_tokens -= self.tokens(job)
        if job.revision is not None:
            self.revisions[job.revision] = self.revisions.get(job.revision, 0) + 1

    def victim(self) -> str | None:
        """Choose the adapter that frees its slot first if it gets no more jobs."""
        return min(
            (revision for revision in self.revisions if revision not in self.barred),
            key=lambda revision: (self.revisions[revision], revision),
            default=None,
        )

    def batch(self) -> PlannedBatch:
        """Say what was planned here."""
        return PlannedBatch(self.view.incarnation, tuple(self.planned))
