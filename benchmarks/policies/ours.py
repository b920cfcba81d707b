"""Our policy as the simulator asks it: the one place that calls `scheduler.policies`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

from benchmarks.policies.policy import Dispatch, Hint, Setting
from benchmarks.policies.workload import Job
from scheduler.policies import (
    Backlog,
    Fairness,
    FleetOutlook,
    JobPace,
    PendingJob,
    PolicyConfig,
    WorkerView,
    lookahead,
    plan,
)

_LEFT_AT_DEFAULT = {"attempt", "group", "request_bytes"}
"""Of a job's header: of jobs that come back, of suspects, of messages."""
_CONFIG = PolicyConfig()


def header(job: Job, now: float) -> PendingJob:
    """Return what the leader knows of a job; KeyError for a field of its headers that is not known here."""
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
    """Mutable: the backlog of a leader, and the jobs in workers' hands."""

    is_timed = True
    grouping_window = _CONFIG.grouping_window

    def __init__(self, setting: Setting, fairness: Fairness | None = None) -> None:
        """`fairness` is what the ledger has of tenants' counters."""
        self._setting = setting
        self._backlog = Backlog(_CONFIG, fairness)
        self._jobs: dict[UUID, tuple[Job, float]] = {}
        self._pace = JobPace()
        """Tokens asked for, as `scheduler.fleet` counts them."""
        self._output_pace = JobPace()
        """Tokens written."""
        self._look_out()
        self._leased: dict[UUID, PendingJob] = {}

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

    def _look_out(self) -> None:
        num_workers = len(self._setting.workers)
        self._backlog.outlook = FleetOutlook(
            first_token_s=self._setting.hardware.dispatch_s,
            output_token_s=self._output_pace.token_s,
            num_workers=num_workers,
            max_workers=num_workers,
        )

    def plan(self, views: Sequence[WorkerView], now: float) -> list[Dispatch]:
        """Ask for one round."""
        batches = plan(self._backlog, views, now)
        self._leased.update((one.job_id, one) for batch in batches for one in batch.jobs)
        return [
            Dispatch(batch.incarnation, [self._jobs.pop(one.job_id)[0] for one in batch.jobs])
            for batch in batches
        ]

    def take_refused(self) -> Sequence[Job]:
        """Take what is hopeless."""
        return [self._jobs.pop(one.job_id)[0] for one in self._backlog.take_hopeless()]

    def ended(self, worker: str, jobs: Sequence[Job], now: float) -> None:  # noqa: ARG002 - what all are asked
        """Settle what was charged."""
        for job in jobs:
            self._leased.pop(job.job_id, None)
            ran = job.ended_at is not None
            if ran and job.dispatched_at is not None:
                in_hand_s = now - job.dispatched_at
                self._pace.observe(job.prompt_tokens + job.max_tokens, in_hand_s, now)
                self._output_pace.observe(job.output_tokens, in_hand_s, now)
            self._backlog.fairness.settle(
                job.job_id, job.prompt_tokens if ran else 0, job.output_tokens if ran else 0
            )
        self._look_out()

    def hints(self, views: Sequence[WorkerView], now: float) -> Sequence[Hint]:
        """Ask for the look-ahead."""
        return [Hint(one.incarnation, one.prefetch, one.drop) for one in lookahead(self._backlog, views, now)]

    def eta_s(self, job: Job, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict as `scheduler.forecast` does."""
        known = self._backlog.get(job.job_id)
        if known is None:
            return None
        ahead = self._backlog.order.before(known, self._backlog.order.fluid({}))
        per_s = self._pace.of(sum(view.num_outstanding for view in views))
        return None if per_s is None else ahead.tokens / per_s + self._backlog.run_s(known)

    def retry_after_s(self, num_jobs: int, views: Sequence[WorkerView], now: float) -> float | None:  # noqa: ARG002
        """Predict as `scheduler.forecast` does, by the mean of the jobs that wait."""
        per_s = self._pace.of(sum(view.num_outstanding for view in views))
        if per_s is None or not len(self._backlog):
            return None
        return num_jobs * self._backlog.order.tokens / len(self._backlog) / per_s

    def succeed(self, now: float) -> Ours:  # noqa: ARG002
        """Read waiting and running jobs and the counters anew, as a new leader does from the ledger."""
        waiting = sorted(self._jobs.values(), key=lambda pair: pair[0].number)
        tenants = {job.tenant for job, _ in waiting} | {one.tenant for one in self._leased.values()}
        fairness = Fairness(window=_CONFIG.grouping_window)
        standings = {tenant: self._backlog.fairness.standing(tenant) for tenant in sorted(tenants)}
        fairness.restore(standings, self._leased.values(), {job.tenant for job, _ in waiting})
        successor = Ours(self._setting, fairness)
        successor._pace, successor._output_pace = self._pace, self._output_pace
        successor._look_out()
        successor._leased = dict(self._leased)
        for job, since in waiting:
            successor.add(job, since)
        return successor
