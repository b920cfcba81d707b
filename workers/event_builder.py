"""What a worker tells the leader, as one message made of everything that has happened since the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from db.records import FinishedJob
from lorayard.contract.messages import AdapterFailure, EndedJob, HeldJob, WorkerEvent
from workers.engine_status import Capacity, EngineStatus, ResidencyNews


@dataclass(slots=True)
class WorkerUpdate:
    """News not yet told; it grows while Redis is away and shrinks to its newest `limit` ends."""

    finished: list[FinishedJob] = field(default_factory=list)
    failures: list[AdapterFailure] = field(default_factory=list)
    held: tuple[HeldJob, ...] | None = None
    answered: UUID | None = None

    def __bool__(self) -> bool:
        return bool(self.finished or self.failures or self.held is not None or self.answered)

    def merge(self, later: WorkerUpdate) -> None:
        """Append what happened after this."""
        self.finished += later.finished
        self.failures += later.failures
        self.held = self.held if later.held is None else later.held
        self.answered = later.answered or self.answered

    def trim(self, limit: int) -> int:
        """Forget the oldest ends above the limit: clients look up, heartbeats repair; returns how many."""
        excess = max(0, len(self.finished) - limit)
        del self.finished[:excess]
        return excess


@dataclass(slots=True)
class WorkerEventBuilder:
    """Renders updates for one incarnation."""

    incarnation: str
    status: EngineStatus
    takes_work: Callable[[], bool] = lambda: True
    draining: bool = False

    def events(self, update: WorkerUpdate) -> list[WorkerEvent]:
        """Render ends with residency's changes, and a heartbeat with the whole of it."""
        events = []
        if update.finished or update.failures or update.answered or self.status.has_news:
            events.append(self._event(self.status.take_changes(), update))
        if update.held is not None:
            heartbeat = WorkerUpdate(held=update.held)
            events.append(self._event(self.status.whole(), heartbeat))
        return events

    def _event(self, news: ResidencyNews, update: WorkerUpdate) -> WorkerEvent:
        draining = self.draining or not self.takes_work()
        capacity = Capacity(0, 0) if draining else self.status.capacity
        return WorkerEvent(
            incarnation=self.incarnation,
            free_seqs=capacity.free_seqs,
            free_kv_blocks=capacity.free_kv_blocks,
            residency_epoch=news.epoch,
            residency=news.residency,
            ended=ended_jobs(update.finished),
            held=update.held,
            failures=tuple(update.failures),
            draining=draining,
        )


def ended_jobs(finished: Sequence[FinishedJob]) -> tuple[EndedJob, ...]:
    """Name the jobs this worker holds no longer."""
    return tuple(
        EndedJob(
            job_id=job.job_id,
            attempt=job.attempt,
            state=job.state,
            prompt_tokens=job.result.prompt_tokens,
            completion_tokens=job.result.completion_tokens,
        )
        for job in finished
    )
