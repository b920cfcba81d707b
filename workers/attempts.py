"""Remembers which attempts this worker has in hand, so that each runs once and none is forgotten."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob, HeldJob

REMEMBERED_ATTEMPTS = 4_096
"""Settled attempts kept in mind, more than a micro-batch has: it may come again while its last ones end.
One that comes later finds no lease in the ledger, which is asked before anything runs."""


class Phase(Enum):
    """How far an attempt has come on this worker."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class StopReason(Enum):
    """Why the worker itself stopped an attempt, which decides what the ledger hears."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RELEASED = "released"
    FENCED = "fenced"


@dataclass(slots=True)
class ActiveAttempt:
    """One attempt in hand; `deadline_at` and `started_at` are on the worker's monotonic clock."""

    job: BatchJob
    task_id: str
    arrived_at: float
    deadline_at: float | None
    phase: Phase = Phase.WAITING
    started_at: float | None = None
    stop_reason: StopReason | None = None
    num_streamed_tokens: int = 0
    num_streamed_chars: int = 0
    key: JobAttempt = field(init=False)
    """What the ledger and the engine call it."""

    def __post_init__(self) -> None:
        self.key = JobAttempt(self.job.job_id, self.job.attempt)


class AttemptTable:
    """All attempts from arrival until their end is settled in the ledger; every method is thread-safe."""

    def __init__(self, on_task_settled: Callable[[str], None]) -> None:
        self._lock = threading.RLock()
        self._held: dict[JobAttempt, ActiveAttempt] = {}
        self._settled: OrderedDict[JobAttempt, None] = OrderedDict()
        self._open: Counter[str] = Counter()
        self.num_succeeded = 0
        """Jobs that have succeeded here, as the ledger has it."""
        self._on_task_settled = on_task_settled

    def take(self, task_id: str, jobs: Iterable[BatchJob], now: float) -> list[ActiveAttempt]:
        """Take the attempts not seen before; an attempt held or settled already is left out."""
        with self._lock:
            taken = [held for job in jobs if (held := self._take_one(task_id, job, now)) is not None]
            if taken:
                self._open[task_id] += len(taken)
        return taken

    def _take_one(self, task_id: str, job: BatchJob, now: float) -> ActiveAttempt | None:
        within_s = job.first_token_within_s
        held = ActiveAttempt(job, task_id, now, None if within_s is None else now + within_s)
        if held.key in self._held or held.key in self._settled:
            return None
        self._held[held.key] = held
        return held

    def start(self, key: JobAttempt, now: float) -> ActiveAttempt | None:
        """Note that the engine has begun an attempt; None when it is not held."""
        with self._lock:
            held = self._held.get(key)
            if held is not None and held.phase is Phase.WAITING:
                held.phase, held.started_at = Phase.RUNNING, now
            return held

    def stop(self, key: JobAttempt, reason: StopReason) -> ActiveAttempt | None:
        """Note why an attempt is being stopped; None when it has ended or has a reason already."""
        with self._lock:
            held = self._held.get(key)
            if held is None or held.phase is Phase.ENDED or held.stop_reason is not None:
                return None
            held.stop_reason = reason
            return held

    def end(self, key: JobAttempt) -> ActiveAttempt | None:
        """Note that the engine is done with an attempt; None when it is not held or has ended before."""
        with self._lock:
            held = self._held.get(key)
            if held is None or held.phase is Phase.ENDED:
                return None
            held.phase = Phase.ENDED
            return held

    def settle(self, keys: Iterable[JobAttempt]) -> None:
        """Let go of attempts whose end the ledger has recorded or refused."""
        done: list[str] = []
        with self._lock:
            for key in keys:
                held = self._held.pop(key, None)
                if held is not None:
                    self._remember(key)
                    self._close_one(held.task_id, done)
        for task_id in done:
            self._on_task_settled(task_id)

    def _remember(self, key: JobAttempt) -> None:
        self._settled[key] = None
        if len(self._settled) > REMEMBERED_ATTEMPTS:
            self._settled.popitem(last=False)

    def _close_one(self, task_id: str, done: list[str]) -> None:
        self._open[task_id] -= 1
        if self._open[task_id] <= 0:
            del self._open[task_id]
            done.append(task_id)

    def is_open(self, task_id: str) -> bool:
        """Whether any attempt that came with this Celery task is still in hand."""
        with self._lock:
            return task_id in self._open

    def get(self, key: JobAttempt) -> ActiveAttempt | None:
        """Look one attempt up; None when it is not held."""
        with self._lock:
            return self._held.get(key)

    def report(self) -> list[HeldJob]:
        """List what is held, as renewals and heartbeats carry it."""
        with self._lock:
            return [
                HeldJob(job_id=key.job_id, attempt=key.attempt, running=held.phase is Phase.RUNNING)
                for key, held in self._held.items()
            ]

    def live(
        self, job_ids: Collection[UUID] | None = None, task_id: str | None = None
    ) -> list[ActiveAttempt]:
        """List attempts that have not ended: all, of some jobs, or of one Celery task."""
        with self._lock:
            return [
                held
                for key, held in self._held.items()
                if held.phase is not Phase.ENDED
                and (job_ids is None or key.job_id in job_ids)
                and (task_id is None or held.task_id == task_id)
            ]

    def overdue(self, now: float) -> list[ActiveAttempt]:
        """List attempts that have no token yet although their deadline has passed."""
        with self._lock:
            return [
                held
                for held in self._held.values()
                if held.phase is Phase.WAITING and held.deadline_at is not None and held.deadline_at <= now
            ]

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)
