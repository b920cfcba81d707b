"""Sends to the engine from one thread, so that the Celery hub never waits for a busy engine."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

import structlog

from db.records import JobAttempt
from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.engine.core.errors import EngineProcessError
from workers.engine.serving.process import AbortRequest, AddRequest, DropAdapter, PrefetchAdapter

GATE_POLL_S = 0.05

Command = AbortRequest | PrefetchAdapter | DropAdapter
logger = structlog.get_logger(__name__)


class Feeder:
    """Commands go out at once; requests wait while the gate is shut (an outage of Postgres)."""

    def __init__(
        self,
        send: Callable[[AddRequest | Command], None],
        gate_is_open: Callable[[], bool],
        *,
        on_unsent: Callable[[AddRequest, Exception], None],
        on_broken: OnBroken,
    ) -> None:
        """`on_unsent` hears of a request that cannot be sent, for a reason that lies in it."""
        self._send = send
        self._gate_is_open = gate_is_open
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._requests: OrderedDict[JobAttempt, AddRequest] = OrderedDict()
        self._on_unsent = on_unsent
        self._thread = ServiceThread("feeder", self._step, on_broken=on_broken, wake=self._rouse)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Stop sending; what was not sent is forgotten."""
        self._thread.stop()

    def _rouse(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def add(self, key: JobAttempt, request: AddRequest) -> None:
        """Queue a request for the engine."""
        with self._wake:
            self._requests[key] = request
            self._wake.notify()

    def withdraw(self, key: JobAttempt) -> bool:
        """Take a request back; False when it is on its way to the engine already."""
        with self._wake:
            return self._requests.pop(key, None) is not None

    def command(self, command: Command) -> None:
        """Queue a command; it overtakes waiting requests but never one that was sent before."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _step(self) -> None:
        message = self._next()
        if message is None:
            return
        try:
            self._send(message)
        except EngineProcessError as error:
            # The pump meets the same end in `receive` and acts on it.
            logger.warning("feeder.engine_gone", error=str(error))
            self._thread.stop()
        except Exception as error:
            if not isinstance(message, AddRequest):
                raise
            logger.exception("feeder.not_sent", request_id=message.request_id)
            self._on_unsent(message, error)

    def _next(self) -> AddRequest | Command | None:
        with self._wake:
            while not self._thread.stopping.is_set():
                if self._commands:
                    return self._commands.popleft()
                if self._requests and self._gate_is_open():
                    return self._requests.popitem(last=False)[1]
                self._wake.wait(GATE_POLL_S if self._requests else None)
        return None
