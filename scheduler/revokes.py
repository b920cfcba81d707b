"""Hears revokes from Flower and `celery control`: a Celery control node of the scheduler's own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import structlog
from celery import Celery
from kombu.pidbox import Node

from lorayard.process.service_thread import ServiceThread
from scheduler.outages import is_outage

MAX_WAITING: Final = 10_000
MEMORY_S: Final = 60.0
"""A revoke heard as a follower counts if it becomes leader soon after: the one before may have died of it."""

POLL_S: Final = 0.5

logger = structlog.get_logger(__name__)


class RevokeNode:
    """A thread with a broker connection of its own; what it heard waits until it is taken.

    An observer: revokes are best effort, and a cancel by a client takes another way.
    """

    def __init__(self, app: Celery, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        self._heard: deque[tuple[float, UUID]] = deque(maxlen=MAX_WAITING)
        self._thread = ServiceThread("revokes", self._listen, on_broken=None, is_outage=_is_broker_outage)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._thread.close()

    def take(self) -> Sequence[UUID]:
        """Hand out the ids revoked lately, once."""
        oldest = time.monotonic() - MEMORY_S
        taken = []
        while self._heard:
            heard_at, task_id = self._heard.popleft()
            if heard_at >= oldest:
                taken.append(task_id)
        return taken

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            node: Node = self._app.control.mailbox.Node(self._hostname, channel=connection.default_channel)
            consumer = node.Consumer(callbacks=[self._on_message])  # type: ignore[no-untyped-call]
            with consumer:
                while not self._thread.stopping.is_set():
                    try:
                        connection.drain_events(timeout=POLL_S)
                    except TimeoutError:
                        continue

    def _on_message(self, body: Any, _message: Any) -> None:
        with self._thread.item(message=repr(body)[:200]):
            self._take_in(body)

    def _take_in(self, body: Any) -> None:
        """Take a revoke that is addressed to everyone or to us; leave all else to the workers."""
        destination = body.get("destination")
        if body.get("method") != "revoke" or (destination and self._hostname not in destination):
            return
        found = body.get("arguments", {}).get("task_id") or ()
        for task_id in [found] if isinstance(found, str) else found:
            try:
                self._heard.append((time.monotonic(), UUID(task_id)))
            except ValueError:
                logger.debug("revokes.not_ours", task_id=task_id)


def _is_broker_outage(error: BaseException) -> bool:
    # What a socket raises comes through kombu as it is: an OSError.
    return is_outage(error) or isinstance(error, OSError)
