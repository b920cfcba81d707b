"""Makes every job a task of its own in Flower, by standard task events: best effort, never in the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID

import structlog
from celery import Celery
from celery.events import EventDispatcher
from celery.utils.time import utcoffset
from kombu.connection import Connection

from lorayard.contract.tasks import GENERATE
from lorayard.server.event_pacer import EventPacer

MAX_TEXT: Final = 200
MAX_BUFFERED: Final = 5_000
FLUSH_AT: Final = 500
FLUSH_EVERY_S: Final = 0.1
RETRY_AFTER_S: Final = 1.0

logger = structlog.get_logger(__name__)

_Event = tuple[str, dict[str, Any]]


class JobEvents:
    """A buffered sender of task events with a connection of its own. Thread-safe; never raises.

    Received, started and the end of a job must bear one `hostname`: Flower counts what a worker holds by it.
    Events wait until `flush()`, or until enough of them are there; while Redis is away they are dropped.
    """

    def __init__(
        self,
        app: Celery,
        hostname: str,
        *,
        max_events_per_s: float = 6000.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._hostname = hostname
        self._clock = clock
        self._pacer = EventPacer(max_events_per_s)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._buffer: list[_Event] = []
        self._flushed_at = clock()
        self._retry_at = float("-inf")
        self._connection: Connection | None = None
        self._dispatcher: EventDispatcher | None = None
        self.num_lost_events = 0

    @property
    def num_dropped_jobs(self) -> int:
        """Jobs left out whole, to stay within the budget."""
        return self._pacer.num_dropped_jobs

    @property
    def num_open_jobs(self) -> int:
        """Jobs that something was to be shown of, and not their end."""
        return len(self._pacer)

    def sent(self, job_id: UUID, adapter: str | None, tenant: str, queue: str = "intake") -> None:
        """A job is in the ledger and waits."""
        self._add("task-sent", job_id, **_description(job_id, adapter, tenant), queue=queue)

    def received(self, job_id: UUID, adapter: str | None, tenant: str) -> None:
        """A job has reached its worker."""
        description = _description(job_id, adapter, tenant)
        self._add("task-received", job_id, **description, eta=None, expires=None)

    def started(self, job_id: UUID) -> None:
        """A job has its place in the running batch."""
        self._add("task-started", job_id)

    def succeeded(self, job_id: UUID, output: str, runtime_s: float) -> None:
        """A job has its answer."""
        self._add("task-succeeded", job_id, ends=True, result=_cut(repr(output)), runtime=runtime_s)

    def failed(self, job_id: UUID, error: str) -> None:
        """A job has ended without an answer."""
        self._add("task-failed", job_id, ends=True, exception=_cut(error), traceback="")

    def revoked(self, job_id: UUID, *, expired: bool = False) -> None:
        """A job was cancelled, or its deadline passed."""
        self._add("task-revoked", job_id, ends=True, terminated=not expired, signum=None, expired=expired)

    def shows(self, job_id: UUID) -> bool:
        """Say whether a job is shown, which is decided once; nothing need be told of one that is not."""
        with self._lock:
            return self._pacer.shows(job_id)

    def leave_out(self, job_id: UUID) -> None:
        """Show nothing of a job, from now to its end."""
        with self._lock:
            self._pacer.leave_out(job_id)

    def forget(self, job_ids: Iterable[UUID]) -> None:
        """Keep nothing of jobs whose ends are not shown here."""
        with self._lock:
            for job_id in job_ids:
                self._pacer.forget(job_id)

    def flush(self) -> None:
        """Send what has gathered."""
        with self._sending:
            with self._lock:
                events, self._buffer = self._buffer, []
                self._flushed_at = self._clock()
            if events:
                self._publish(events)

    def close(self) -> None:
        """Send the rest and let go of the connection."""
        self.flush()
        with self._sending:
            self._disconnect()

    def _add(self, event_type: str, job_id: UUID, *, ends: bool = False, **fields: Any) -> None:
        now = self._clock()
        with self._lock:
            admitted = self._pacer.admits(job_id, now)
            if ends:
                self._pacer.forget(job_id)
            if not admitted:
                return
            if len(self._buffer) >= MAX_BUFFERED:
                self.num_lost_events += 1
                return
            self._buffer.append((event_type, {"uuid": str(job_id), "timestamp": time.time(), **fields}))
            due = len(self._buffer) >= FLUSH_AT or now - self._flushed_at >= FLUSH_EVERY_S
        if due:
            self.flush()

    def _publish(self, events: list[_Event]) -> None:
        """Send one message with all events; an outage costs these events and a pause, no more."""
        if self._clock() < self._retry_at:
            self.num_lost_events += len(events)
            return
        try:
            self._send(self._dispatcher or self._connect(), events)
        except Exception as error:  # noqa: BLE001 - kombu raises many kinds; none may stop a job
            self.num_lost_events += len(events)
            self._retry_at = self._clock() + RETRY_AFTER_S
            self._disconnect()
            logger.warning("flower_events.lost", events=len(events), error=str(error))

    def _send(self, dispatcher: EventDispatcher, events: list[_Event]) -> None:
        """Send what the dispatcher would have made of the events one by one, at one tick of its clock."""
        common = {
            "hostname": self._hostname,
            "utcoffset": utcoffset(),
            "pid": dispatcher.pid,
            "clock": dispatcher.clock.forward(),
        }
        dispatcher.producer.publish(
            [{"type": event_type, **fields, **common} for event_type, fields in events],
            routing_key="task.multi",
            exchange=dispatcher.exchange.name,
            declare=[dispatcher.exchange],
            serializer=dispatcher.serializer,
            headers=dispatcher.headers,
            delivery_mode=dispatcher.delivery_mode,
        )

    def _connect(self) -> EventDispatcher:
        self._connection = self._app.connection_for_write()
        self._dispatcher = EventDispatcher(
            self._connection,
            hostname=self._hostname,
            app=self._app,
            buffer_while_offline=False,
        )
        return self._dispatcher

    def _disconnect(self) -> None:
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is None:
            return
        try:
            connection.release()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - the connection is given up either way
            logger.debug("flower_events.release_failed", error=str(error))


def _description(job_id: UUID, adapter: str | None, tenant: str) -> dict[str, Any]:
    """Fill the fields by which Flower lists a task."""
    return {
        "name": GENERATE,
        "args": "()",
        "kwargs": _cut(repr({"adapter": adapter, "tenant": tenant})),
        "root_id": str(job_id),
        "parent_id": None,
        "retries": 0,
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
