"""Builds jobs and workers for tests of the policies."""

from __future__ import annotations

from uuid import UUID

from scheduler.policies import Backlog, PendingJob, PlannedBatch, WorkerCapacity, WorkerView

CAPACITY = WorkerCapacity(
    max_num_seqs=8, kv_tokens=10_000, max_model_len=1_000, max_loras=2, max_lora_rank=16
)


def job(
    number: int,
    revision: str | None = None,
    *,
    priority: int = 1,
    since: float = 0.0,
    rank: int = 8,
    prompt_tokens: int = 10,
    max_tokens: int = 10,
    group: int | None = None,
    attempt: int = 0,
    tenant: str = "t",
    deadline: float | None = None,
    adapter_bytes: int = 0,
) -> PendingJob:
    return PendingJob(
        job_id=UUID(int=number),
        admit_seq=number,
        priority=priority,
        revision=revision,
        rank=0 if revision is None else rank,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        waiting_since=since,
        group=None if group is None else UUID(int=group),
        attempt=attempt,
        tenant=tenant,
        deadline_at=deadline,
        adapter_bytes=adapter_bytes,
    )


def worker(
    name: str = "w1",
    capacity: WorkerCapacity = CAPACITY,
    *,
    outstanding: dict[str, int] | None = None,
    device: tuple[str, ...] = (),
    host: tuple[str, ...] = (),
    cooling: tuple[str, ...] = (),
    runs_alone: bool = False,
    canary_wait_s: float | None = None,
    target: int | None = None,
) -> WorkerView:
    counts = outstanding or {}
    return WorkerView(
        incarnation=name,
        capacity=capacity,
        target_seqs=capacity.max_num_seqs if target is None else target,
        num_outstanding=sum(counts.values()) + runs_alone,
        outstanding_tokens=20 * sum(counts.values()),
        outstanding_revisions=counts,
        device=device,
        host=host,
        cooling=cooling,
        runs_alone=runs_alone,
        is_canary=canary_wait_s is not None,
        canary_wait_s=canary_wait_s or 0.0,
    )


def backlog_of(*jobs: PendingJob) -> Backlog:
    backlog = Backlog()
    for one in jobs:
        backlog.add(one)
    return backlog


def numbers(batch: PlannedBatch) -> list[int]:
    return [one.admit_seq for one in batch.jobs]
