"""Celery's own worker, started from a program: one queue, our pool, our signals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery import Celery
from celery.apps.worker import EX_OK
from celery.exceptions import OperationalError as CeleryOperationalError
from celery.worker import WorkController, state
from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError
from kombu.message import Message
from kombu.serialization import registry
from kombu.utils.json import dumps
from redis.exceptions import RedisError, ResponseError

from lorayard.contract.keys import worker_queue
from lorayard.contract.tasks import RUN_MICRO_BATCH
from workers.pool import BatchesInFlight, TaskPool, pool_for

CONNECT_S: Final = 2.0
REFUSED_PAUSE_S: Final = 1.0

logger = structlog.get_logger(__name__)


class _Consumer(Consumer):
    """Celery's consumer, which otherwise begins anew at once, and again and again, while Redis refuses."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Pause after a refusal; a connection that cannot be made has pauses already."""
        super().on_connection_error_before_connected(exc)
        _pause_if_refused(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Pause after a refusal, as before."""
        super().on_connection_error_after_connected(exc)
        _pause_if_refused(exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Acknowledge what is not JSON, and let the pool look for the job that it was about."""
        super().on_decode_error(message, exc)
        if message.headers.get("task") == RUN_MICRO_BATCH:
            self.pool.not_read(message.headers["id"], message.body, exc)


def _pause_if_refused(error: Exception) -> None:
    if isinstance(error, ResponseError):
        time.sleep(REFUSED_PAUSE_S)


class _Controller(WorkController):
    """Celery's worker, which otherwise leaves with its last task events unsent."""

    def on_stopped(self) -> None:
        """Send what the hub, stopped by now, would have sent in its next turn."""
        dispatcher = self.consumer.event_dispatcher
        if dispatcher is not None:
            dispatcher.flush()
        super().on_stopped()


class CeleryWorker:
    """Consumes the queue of one incarnation; `run` belongs to the main thread, the rest to any."""

    def __init__(
        self,
        app: Celery,
        incarnation: str,
        hostname: str,
        batches: BatchesInFlight,
        *,
        max_num_seqs: int,
        on_ready: Callable[[], None],
    ) -> None:
        self._app = app
        self._queue = worker_queue(incarnation)
        read_plain_json()
        self._controller: Any = _Controller(
            app=app,
            hostname=hostname,
            queues=[self._queue],
            pool_cls=pool_for(batches),
            consumer_cls=_Consumer,
            concurrency=max_num_seqs,
            ready_callback=lambda _consumer: on_ready(),
            without_mingle=True,
            without_gossip=True,
        )

    def run(self) -> None:
        """Consume until `stop`; through an outage of Redis too."""
        self._controller.start()

    @property
    def was_shut_down(self) -> bool:
        """Whether `run` returned because that was asked for, by `stop` or by Celery's own control."""
        return bool(self._controller.exitcode == EX_OK)

    def stop(self) -> None:
        """Have `run` return soon; micro-batches still open are forgotten."""
        state.should_stop = 0
        self.wake()

    def wake(self) -> None:
        """Have the pool look for micro-batches that have ended."""
        pool = self._controller.pool
        if isinstance(pool, TaskPool):
            pool.wake()

    def delete_queue(self) -> None:
        """Remove the queue with whatever still lies in it; the leader does so if this fails."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_S)
                queue = self._app.amqp.queues[self._queue].bind(connection.default_channel)
                # The transport removes only those bindings that this connection knows of.
                queue.declare()
                queue.delete()
        except (OperationalError, CeleryOperationalError, RedisError, OSError) as error:
            logger.warning("queue.not_deleted", queue=self._queue, error=str(error))


def read_plain_json() -> None:
    """Have this process read JSON as what it says.

    Kombu would take an object with the keys `__type__` and `__value__` for a value of its own and refuse the
    whole message, with all jobs in it, if it knows no such type: a job's metadata may look like that.
    """
    registry.register(  # type: ignore[no-untyped-call]
        "json", dumps, _loads, content_type="application/json", content_encoding="utf-8"
    )


def _loads(body: Any) -> Any:
    return json.loads(bytes(body) if isinstance(body, memoryview) else body)


def is_revoked(task_id: str) -> bool:
    """Whether a revoke of this id has reached the worker (from Flower, or any Celery control)."""
    return bool(state.revoked) and task_id in state.revoked
