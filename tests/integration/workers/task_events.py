"""Hears what Flower would hear."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from lorayard.server.celery_app import make_app
from tests.polling import eventually


class TaskEvents:
    """Collects task events from the broker on a thread."""

    def __init__(self, redis_url: str) -> None:
        self._app = make_app(redis_url)
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="task-events")
        self.seen: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "no connection to the broker"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._app.close()

    def of(self, task_id: object) -> dict[str, dict[str, Any]]:
        """Collect the events of one task, by their type."""
        return {event["type"]: event for event in list(self.seen) if event.get("uuid") == str(task_id)}

    def await_event(self, event_type: str, task_id: object) -> dict[str, Any]:
        """Wait for one event."""
        return eventually(lambda: self.of(task_id).get(event_type), what=f"{event_type} of {task_id}")

    def _run(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.seen.append})
            with receiver.consumer_context() as (own_connection, _channel, _consumers):
                # The transport subscribes with the first look: what is sent before it is never heard.
                self._drain(own_connection.drain_events)
                self._ready.set()
                while not self._stopping.is_set():
                    self._drain(own_connection.drain_events)

    def _drain(self, drain_events: Callable[..., Any]) -> None:
        try:
            drain_events(timeout=0.2)
        except TimeoutError:
            return
