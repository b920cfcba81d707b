"""The engine in a process of its own: its caller's threads cannot slow it, nor its death end them."""

from __future__ import annotations

import atexit
import json
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from workers.engine.core.child_process import ChildProcess
from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import DeviceLost, EngineDied, EngineStartError
from workers.engine.serving.messages import (
    AbortRequest,
    AddRequest,
    Command,
    DeviceFailed,
    DropAdapter,
    EngineEvents,
    PlanResidency,
    PrefetchAdapter,
    Ready,
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
    "Command",
    "Started",
    "TokenDelta",
    "EngineEvents",
]

_PROGRAM = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from workers.engine.lora.loading import fork_process
loader_child = fork_process() if sys.argv[5] == "True" else None
from workers.engine.serving.child import main
main(int(sys.argv[3]), sys.argv[4], loader_child)
"""
"""The parent decides when to stop, whatever signal reaches the whole process group. The loader is a copy made
when what it needs is imported, torch above all, and before anything makes a thread or touches a card."""

_START_POLL_S = 0.1


class EngineProcess:
    """A child process that serves commands; `send` and `receive` may be used from different threads."""

    def __init__(self, config: EngineConfig, *, log_fields: Mapping[str, str] | None = None) -> None:
        """With `log_fields`, its log is JSON lines on standard error, each with these fields."""
        self._config = config
        self._log_fields = "" if log_fields is None else json.dumps(dict(log_fields))
        self._connection: Connection
        self._child: ChildProcess | None = None
        self._send_lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._child is not None, "the engine process was not started"
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child is running."""
        return self._child is not None and self._child.is_alive

    def start(self, timeout_s: float, *, is_unwanted: Callable[[], bool] = lambda: False) -> EngineInfo:
        """Start the child and wait until the model is loaded; raises `EngineStartError` with the reason.

        `is_unwanted` is asked meanwhile, and ends the start if it says so.
        """
        self._connection, theirs = Pipe(duplex=True)
        try:
            # Only the child may hold its end, or its death would not end the connection.
            self._child = ChildProcess(
                _PROGRAM,
                theirs.fileno(),
                self._log_fields,
                self._config.enable_lora,
                pass_fds=[theirs.fileno()],
                on_spawned=theirs.close,
            )
        except (OSError, RuntimeError) as error:
            raise EngineStartError(f"the engine process cannot be started: {error}") from error
        # An engine that is told to stop ends its own children in order; exit alone would kill it.
        atexit.register(self.stop)
        try:
            self._connection.send(self._config)
            return self._await_ready(time.monotonic() + timeout_s, timeout_s, is_unwanted)
        except (EOFError, OSError) as error:
            raise EngineStartError(
                f"the engine process ended with exit code {self._child.exitcode} while starting"
            ) from error
        except EngineStartError:
            self._child.kill()
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
        except Exception as error:
            # Lost with it is what it told of the requests: nothing could be said of them any more.
            self._kill()
            raise EngineDied(self._final_exitcode()) from error
        if isinstance(events, DeviceFailed):
            self._kill()  # a process whose device hangs may not come to its end by itself
            raise DeviceLost(self._final_exitcode(), events.message)
        assert isinstance(events, EngineEvents), f"the engine sent {type(events).__name__}"
        return events

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child, by force after `timeout_s`; stopping twice does nothing."""
        atexit.unregister(self.stop)
        if self._child is None or not self._child.is_alive:
            return
        try:
            self.send(Stop())
        except EngineDied:
            return
        if self._child.wait(timeout_s) is None:
            self._kill()

    def _await_ready(self, deadline: float, timeout_s: float, is_unwanted: Callable[[], bool]) -> EngineInfo:
        while not self._connection.poll(_START_POLL_S):
            if is_unwanted():
                raise EngineStartError("the engine is not wanted any more: its start was broken off")
            if time.monotonic() >= deadline:
                raise EngineStartError(f"the engine was not ready after {timeout_s:g} s; allow it more time")
        answer = self._connection.recv()
        if isinstance(answer, StartFailed):
            raise EngineStartError(f"{answer.code}: {answer.message}", answer.code)
        assert isinstance(answer, Ready), f"the engine sent {type(answer).__name__}"
        return answer.info

    def _final_exitcode(self) -> int | None:
        return None if self._child is None else self._child.exitcode

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
