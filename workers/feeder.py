"""Sends to the engine from one thread, so that the Celery hub never waits for a busy engine."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, Protocol

import structlog

from db.records import JobAttempt
from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.engine.core.errors import EngineProcessError
from workers.engine.serving.process import AbortRequest, AddRequest, DropAdapter, PrefetchAdapter

GATE_POLL_S = 0.05
MAX_SENT: Final = 64
"""As many as the engine takes in between two steps."""

Command = AbortRequest | PrefetchAdapter | DropAdapter
logger = structlog.get_logger(__name__)


class Send(Protocol):
    """Sends all in one message, or raises and has sent nothing."""

    def __call__(self, *commands: AddRequest | Command) -> None:
        """Raise EngineProcessError if the engine is gone, anything else for what lies in the commands."""
        ...


class Feeder:
    """Commands go out at once; requests wait while the gate is shut (an outage of Postgres).

    What waits goes out together, so that what requests have in common is pickled once.
    """

    def __init__(
        self,
        send: Send,
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

    def add(self, requests: Mapping[JobAttempt, AddRequest]) -> None:
        """Queue requests for the engine, in this order."""
        with self._wake:
            self._requests.update(requests)
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
        if messages := self._next():
            self._send_all(messages)

    def _send_all(self, messages: Sequence[AddRequest | Command]) -> None:
        try:
            self._send(*messages)
        except EngineProcessError as error:
            # The pump meets the same end in `receive` and acts on it.
            logger.warning("feeder.engine_gone", error=str(error))
            self._thread.stop()
        except Exception as error:
            if len(messages) > 1:
                for message in messages:
                    self._send_all([message])
                return
            if not isinstance(one := messages[0], AddRequest):
                raise
            logger.exception("feeder.not_sent", request_id=one.request_id)
            self._on_unsent(one, error)

    def _next(self) -> Sequence[AddRequest | Command]:
        with self._wake:
            while not self._thread.stopping.is_set():
                if self._commands:
                    return [self._commands.popleft() for _ in range(min(MAX_SENT, len(self._commands)))]
                if self._requests and self._gate_is_open():
                    keys = list(islice(self._requests, MAX_SENT))
                    return [self._requests.pop(key) for key in keys]
                self._wake.wait(GATE_POLL_S if self._requests else None)
        return ()
