"""The engine in a process of its own: its caller's threads cannot slow it, nor its death end them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection

from workers.engine.core.config import EngineConfig
from workers.engine.core.errors import EngineDied, EngineStartError
from workers.engine.serving.assembly import EngineInfo
from workers.engine.serving.child import serve
from workers.engine.serving.messages import (
    AbortRequest,
    AddRequest,
    Command,
    DropAdapter,
    EngineEvents,
    PlanResidency,
    PrefetchAdapter,
    Ready,
    ReportStats,
    Started,
    StartFailed,
    Stop,
    TokenDelta,
)

__all__ = [
    "EngineProcess",
    "EngineInfo",
    "AddRequest",
    "AbortRequest",
    "PrefetchAdapter",
    "DropAdapter",
    "PlanResidency",
    "ReportStats",
    "Command",
    "Started",
    "TokenDelta",
    "EngineEvents",
]

_REAP_TIMEOUT_S = 5.0


class EngineProcess:
    """A child process that serves commands; `send` and `receive` may be used from different threads."""

    def __init__(self, config: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection: Connection
        self._connection, self._childs_connection = context.Pipe(duplex=True)
        self._process = context.Process(
            target=serve,
            args=(self._childs_connection, config, os.getpid()),
            name="lorayard-engine",
            daemon=True,
        )
        self._keeper = threading.Thread(target=self._keep, name="engine-keeper", daemon=True)
        self._is_spawned = threading.Event()
        self._spawn_error: Exception | None = None
        self._send_lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process.pid is not None, "the engine process was not started"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child is running."""
        return self._keeper.is_alive() and self._is_spawned.is_set()

    def start(self, timeout_s: float) -> EngineInfo:
        """Start the child and wait until the model is loaded; raises `EngineStartError` with the reason."""
        self._keeper.start()
        self._is_spawned.wait()
        if self._spawn_error is not None:
            raise EngineStartError(
                f"the engine process cannot be started: {self._spawn_error}"
            ) from self._spawn_error
        # At exit multiprocessing sends daemons SIGTERM, which this child ignores, and waits for them.
        atexit.register(self.stop)
        try:
            return self._await_ready(timeout_s)
        except EngineStartError:
            self._kill()
            raise

    def send(self, command: Command) -> None:
        """Give the child a command; raises `EngineDied` when it is gone."""
        try:
            with self._send_lock:
                self._connection.send(command)
        except OSError as error:
            raise EngineDied(self._final_exitcode()) from error

    def receive(self, timeout_s: float) -> EngineEvents | None:
        """Return the child's next events, None after `timeout_s` without any; raises `EngineDied`."""
        try:
            if not self._connection.poll(timeout_s):
                return None
            events = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineDied(self._final_exitcode()) from error
        assert isinstance(events, EngineEvents), f"the engine sent {type(events).__name__}"
        return events

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child, by force after `timeout_s`; stopping twice does nothing."""
        atexit.unregister(self.stop)
        if not self.is_alive:
            return
        try:
            self.send(Stop())
        except EngineDied:
            return
        self._keeper.join(timeout_s)
        if self._keeper.is_alive():
            self._kill()

    def _keep(self) -> None:
        """Spawn the child and outlive it: the parent-death signal is sent when the spawning *thread* ends."""
        try:
            self._process.start()
        except Exception as error:  # noqa: BLE001 - `start` raises it in the caller's thread
            self._spawn_error = error
            return
        finally:
            # Only the child may hold its end, or its death would not end the connection.
            self._childs_connection.close()
            self._is_spawned.set()
        self._process.join()

    def _await_ready(self, timeout_s: float) -> EngineInfo:
        try:
            if not self._connection.poll(timeout_s):
                raise EngineStartError(f"the engine was not ready after {timeout_s:g} s; allow it more time")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._final_exitcode()
            raise EngineStartError(
                f"the engine process ended with exit code {code} while starting"
            ) from error
        if isinstance(answer, StartFailed):
            raise EngineStartError(f"{answer.code}: {answer.message}")
        assert isinstance(answer, Ready), f"the engine sent {type(answer).__name__}"
        return answer.info

    def _final_exitcode(self) -> int | None:
        self._keeper.join(_REAP_TIMEOUT_S)
        return self._process.exitcode

    def _kill(self) -> None:
        self._process.kill()
        self._keeper.join(_REAP_TIMEOUT_S)
