"""Our policy as the simulator asks it: the one place that calls `scheduler.policies`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

from benchmarks.policies.policy import Dispatch, Hint, Setting
from benchmarks.policies.workload import Job
from scheduler.policies import Backlog, PendingJob, ServiceRate, WorkerView, plan

_LEFT_AT_DEFAULT = {"attempt", "group", "request_bytes"}
"""Of a job's header: of jobs that come back, of suspects, of messages."""


def header(job: Job, now: float) -> PendingJob:
    """Return what the leader knows of a job, as far as its headers have a place for it."""
    known: dict[str, Any] = {
        "job_id": job.job_id,
        "admit_seq": job.number,
        "priority": job.priority,
        "revision": job.adapter.name,
        "rank": job.adapter.rank,
        "prompt_tokens": job.prompt_tokens,
        "max_tokens": job.max_tokens,
        "waiting_since": now,
        "tenant": job.tenant,
        "deadline_at": job.deadline_at,
        "adapter_bytes": job.adapter.size,
    }
    return PendingJob(**{name: known[name] for name in _HEADER})


_HEADER = tuple(field.name for field in fields(PendingJob) if field.name not in _LEFT_AT_DEFAULT)


class Ours:
    """Mutable: the backlog of a leader."""

    is_timed = True
    grouping_window = 0.0

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._backlog = Backlog()
        self._jobs: dict[UUID, tuple[Job, float]] = {}
        self._rate = ServiceRate()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job, now: float) -> None:
        """Let a job wait."""
        self._jobs[job.job_id] = (job, now)
        self._backlog.add(header(job, now))

    def remove(self, job: Job) -> None:
        """Forget a waiting job."""
        del self._jobs[job.job_id]
        self._backlog.take(job.job_id)

    def plan(self, views: Sequence[WorkerView], now: float) -> list[Dispatch]:
        """Ask for one round."""
        return [
            Dispatch(batch.incarnation, [self._jobs.pop(one.job_id)[0] for one in batch.jobs])
            for batch in plan(self._backlog, views, now)
        ]

    def take_refused(self) -> Sequence[Job]:
        """Refuse nothing: no policy does yet."""
        return ()

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:  # noqa: ARG002 - nothing else is learned
        """Count them."""
        self._rate.observe(len(jobs), now)

    def hints(self, views: Sequence[WorkerView], now: float) -> Sequence[Hint]:  # noqa: ARG002
        """Hint at nothing: there is no look-ahead yet."""
        return ()

    def eta_s(self, job: Job, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict nothing: no policy does yet."""
        return None

    def retry_after_s(self, num_jobs: int, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Divide by the rate of ends, as `scheduler.admission_publisher` does."""
        rate = self._rate.per_s(now)
        return num_jobs / rate if rate > 0 else None

    def succeed(self, now: float) -> Ours:  # noqa: ARG002
        """Read the waiting jobs anew, as a new leader does from the ledger."""
        successor = Ours(self._setting)
        for job, since in sorted(self._jobs.values(), key=lambda pair: pair[0].number):
            successor.add(job, since)
        successor._rate = self._rate
        return successor
