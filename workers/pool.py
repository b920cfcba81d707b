"""The Celery pool that hosts the engine: a micro-batch is accepted at once and ends with its last job."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import structlog
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool, apply_target
from kombu.asynchronous import Hub
from kombu.exceptions import DecodeError

from db.records import JobAttempt
from lorayard.contract.reading import UnreadableRequest
from lorayard.contract.tasks import RUN_MICRO_BATCH
from workers.tasks import only_job_in, unreadable

SIDE_THREADS = 2

logger = structlog.get_logger(__name__)


class Traced(NamedTuple):
    """What Celery's tracer returns and `Request.on_success` takes."""

    failed: int
    value: Any
    runtime_s: float


class BatchesInFlight(Protocol):
    """What the pool must know of the engine's side."""

    def is_open(self, task_id: str) -> bool:
        """Whether jobs of this micro-batch are still in hand."""
        ...

    def cancel_task(self, task_id: str) -> None:
        """Cancel the jobs of this micro-batch."""
        ...

    def reject(self, task_id: str, key: JobAttempt, error: UnreadableRequest) -> None:
        """End a job of this micro-batch that cannot be read."""
        ...


@dataclass(slots=True)
class Ticket:
    """One micro-batch as Celery sees it: accepted, perhaps terminated, ended when its jobs have."""

    task_id: str
    accepted_at: float
    on_end: Callable[[Traced], None]
    traced: Traced | None = None
    terminated: bool = False


class TaskPool(BasePool):
    """Made by `pool_for`; all methods run on the hub's thread except `wake` (and the side threads' work).

    The hub keeps receiving while the engine steps: `on_apply` never waits for a job.
    """

    # Holding tasks back by the hub's semaphore stalls at its limit, since a micro-batch ends later.
    uses_semaphore = False
    signal_safe = False
    task_join_will_block = False
    body_can_be_buffer = True

    batches: ClassVar[BatchesInFlight]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tickets: dict[int, Ticket] = {}
        self._pids = itertools.count(1)
        self._side = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side-task")
        self._hub: Hub | None = None

    def register_with_event_loop(self, loop: Hub) -> None:
        """Learn the hub, at the start and again after each reconnect to the broker."""
        self._hub = loop
        loop.call_soon(self._end_tickets)  # type: ignore[no-untyped-call]

    def wake(self) -> None:
        """Have the hub look for micro-batches that have ended; callable from any thread."""
        if self._hub is not None:
            self._hub.call_soon(self._end_tickets)  # type: ignore[no-untyped-call]

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        **_: Any,
    ) -> None:
        """Let a micro-batch join the batch in flight; run any other task on a side thread."""
        name, task_id = args[0], args[1]
        if name == RUN_MICRO_BATCH and callback is not None and accept_callback is not None:
            self._admit(task_id, target, args, callback, accept_callback)
        else:
            self._side.submit(apply_target, target, args, kwargs, callback, accept_callback)

    def _admit(
        self,
        task_id: str,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callable[[Any], None],
        accept_callback: Callable[[int, float], None],
    ) -> None:
        pid, now = next(self._pids), time.monotonic()
        ticket = self._tickets[pid] = Ticket(task_id, now, callback)
        # Accepting may terminate at once, when a revoke came before the task did.
        accept_callback(pid, now)
        try:
            ticket.traced = Traced(*target(*args))
        except Exception as error:  # noqa: BLE001 - left to the hub, it would end the consumer
            ticket.traced = Traced(1, ExceptionInfo(), 0.0)
            self.not_read(task_id, args[3], error)
        if ticket.terminated:
            self.batches.cancel_task(task_id)
        self._end_tickets()

    def not_read(self, task_id: str, body: Any, error: Exception) -> None:
        """End the job of a body that cannot be read, if it is the only one there and can be named.

        Others the leader misses, and sends again: each by itself, because any of them may be to blame.
        """
        reason = str(error)[:300]
        logger.error("micro_batch.not_read", task_id=task_id, error=reason, exc_info=error)
        if not isinstance(error, (DecodeError, TypeError, ValueError)):
            return
        try:
            job = only_job_in(body.encode(errors="replace") if isinstance(body, str) else bytes(body))
            if job is not None:
                self.batches.reject(task_id, job, unreadable(reason))
        except Exception as failure:
            # Nor may this end the consumer.
            logger.exception("micro_batch.not_rejected", task_id=task_id, error=str(failure)[:300])

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Cancel a micro-batch's jobs (Flower's terminate); Celery itself reports the task revoked."""
        ticket = self._tickets.get(pid)
        if ticket is not None:
            logger.info("micro_batch.terminated", task_id=ticket.task_id, signal=signal)
            ticket.terminated = True
            self.batches.cancel_task(ticket.task_id)

    def _end_tickets(self) -> None:
        for pid, ticket in list(self._tickets.items()):
            if ticket.traced is None:
                continue
            if ticket.traced.failed or not self.batches.is_open(ticket.task_id):
                del self._tickets[pid]
                self._end(ticket, ticket.traced)

    def _end(self, ticket: Ticket, traced: Traced) -> None:
        if not ticket.terminated:
            ticket.on_end(traced._replace(runtime_s=time.monotonic() - ticket.accepted_at))

    def on_stop(self) -> None:
        """End the micro-batches that were drained before Celery was told to stop; wait for side tasks."""
        # The hub has taken its last turn, so a wake that came after it is made good here.
        self._end_tickets()
        self._side.shutdown(wait=True)

    def on_terminate(self) -> None:
        """Leave at once."""
        self._side.shutdown(wait=False, cancel_futures=True)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        return info | {"processes": [os.getpid()], "micro-batches": len(self._tickets)}


def pool_for(batches: BatchesInFlight) -> type[TaskPool]:
    """Bind the pool class, which Celery instantiates itself, to this process's engine."""
    return type("TaskPool", (TaskPool,), {"batches": batches, "__module__": TaskPool.__module__})
