"""The room that a rule may still fill on one worker in one round; the same for every rival."""

from __future__ import annotations

from collections.abc import Collection

from benchmarks.policies.workload import Job
from scheduler.policies import WorkerView, low_water


class Budget:
    """Mutable: free sequences, tokens and slots, and what was placed."""

    def __init__(self, view: WorkerView) -> None:
        capacity = view.capacity
        self.view = view
        self.placed: list[Job] = []
        self.revisions = dict(view.outstanding_revisions)
        is_fed = view.num_outstanding >= low_water(capacity.max_num_seqs, view.target_seqs)
        self.free_seqs = 0 if is_fed else view.target_seqs - view.num_outstanding
        lead = max(1.0, view.target_seqs / capacity.max_num_seqs)
        self.free_tokens = int(capacity.kv_tokens * lead) - view.outstanding_tokens

    def lanes(self, queued: Collection[str]) -> Collection[str]:
        """Return the adapters among those queued that may find a slot here."""
        is_full = len(self.revisions) >= self.view.capacity.max_loras
        return list(self.revisions) if is_full else queued

    def has_slot(self, job: Job) -> bool:
        """Whether the job's adapter is outstanding here, or one more may be."""
        return job.adapter.name in self.revisions or len(self.revisions) < self.view.capacity.max_loras

    def has_place(self, job: Job) -> bool:
        """Whether there is a free sequence, and tokens for it."""
        return self.free_seqs > 0 and job.prompt_tokens + job.max_tokens <= self.free_tokens

    def place(self, job: Job) -> None:
        """Give the job to this worker."""
        name = job.adapter.name
        self.placed.append(job)
        self.free_seqs -= 1
        self.free_tokens -= job.prompt_tokens + job.max_tokens
        self.revisions[name] = self.revisions.get(name, 0) + 1
