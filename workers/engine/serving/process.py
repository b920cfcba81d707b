"""The engine in a process of its own: its caller's threads cannot slow it, nor its death end them."""

from __future__ import annotations

import atexit
import json
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler

from workers.engine.core.child_process import ChildProcess
from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import DeviceLost, EngineDied, EngineHung, EngineStartError
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
    Start,
    Started,
    StartFailed,
    Stop,
    TokenDelta,
)
from workers.engine.serving.step_board import Progress, StepBoard

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
_MAX_LOOK_S = 0.5
"""A look at the child that comes later than this counts no more: this process was stopped meanwhile."""

_SEND_S = 5.0
"""A child that takes no more commands is stopped by force after that."""


class EngineProcess:
    """A child process that serves commands; `send` and `receive` may be used from different threads."""

    def __init__(self, config: EngineConfig, *, log_fields: Mapping[str, str] | None = None) -> None:
        """With `log_fields`, its log is JSON lines on standard error, each with these fields."""
        self._config = config
        self._log_fields = "" if log_fields is None else json.dumps(dict(log_fields))
        self._connection: Connection
        self._child: ChildProcess | None = None
        self._board = StepBoard()
        self._num_sent = 0
        self._hung: str | None = None
        self._interrupted, self._interrupter = Pipe(duplex=False)
        self._send_lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._child is not None, "the engine process was not started"
        return self._child.pid

    @property
    def num_sent(self) -> int:
        """The commands that were sent, or are being sent: the child tells how many it has taken in."""
        return self._num_sent

    def progress(self) -> Progress:
        """Read the child's last word on what it does; what it was when it died, once it has."""
        return self._board.read()

    @property
    def is_alive(self) -> bool:
        """Whether the child is running."""
        return self._child is not None and self._child.is_alive

    def start(self, timeout_s: float, *, is_unwanted: Callable[[], bool] = lambda: False) -> EngineInfo:
        """Start the child and wait until the model is loaded; raises `EngineStartError` with the reason.

        `is_unwanted` is asked meanwhile, and ends the start if it says so.
        """
        self._num_sent, self._hung = 0, None
        self._connection, theirs = Pipe(duplex=True)
        try:
            board_file, board_bytes = StepBoard.make_file(self._config.max_num_seqs)
            try:
                self._board = StepBoard(board_file, board_bytes)
                # Only the child may hold its end, or its death would not end the connection.
                self._child = ChildProcess(
                    _PROGRAM,
                    theirs.fileno(),
                    self._log_fields,
                    self._config.enable_lora,
                    pass_fds=[theirs.fileno(), board_file],
                    on_spawned=theirs.close,
                )
            finally:
                os.close(board_file)
        except (OSError, RuntimeError) as error:
            raise EngineStartError(f"the engine process cannot be started: {error}") from error
        # An engine that is told to stop ends its own children in order; exit alone would kill it.
        atexit.register(self.stop)
        try:
            self._connection.send(Start(self._config, board_file, board_bytes))
            return self._await_ready(timeout_s, is_unwanted)
        except (EOFError, OSError) as error:
            raise EngineStartError(
                f"the engine process ended with exit code {self._child.exitcode} while starting"
            ) from error
        except EngineStartError:
            self._child.kill()
            raise

    def send(self, *commands: Command) -> None:
        """Give the child commands, in one message; raises `EngineDied` when it is gone.

        Of commands that cannot be pickled it raises what pickle does, and nothing was sent.
        """
        message = ForkingPickler.dumps(commands)
        try:
            with self._send_lock:
                self._num_sent += len(commands)
                self._connection.send_bytes(message)
        except OSError as error:
            raise self._died() from error

    def give_up(self, reason: str) -> EngineHung:
        """End a child that makes no progress, for this reason; returns what `receive` raises from then on."""
        self._hung = reason
        if self._child is not None:
            self._child.signal_kill()
        self.interrupt()
        return EngineHung(None, reason)

    def interrupt(self) -> None:
        """Have `receive` return None if it waits, or else once when it next would; for other threads."""
        self._interrupter.send_bytes(b"\0")

    def receive(self, timeout_s: float | None) -> EngineEvents | None:
        """Return the child's next events; raises `EngineDied`.

        None after `timeout_s` without any, which may be None for ever, or after an `interrupt`.
        """
        if self._hung is not None:
            raise EngineHung(None, self._hung)  # a process that waits for its device may not even be killed
        try:
            ready = wait([self._connection, self._interrupted], timeout_s)
            if self._interrupted in ready:
                self._interrupted.recv_bytes()
            if self._connection not in ready:
                return None
            events = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
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
        if self._tell_to_stop(min(timeout_s, _SEND_S)) and self._child.wait(timeout_s) is not None:
            return
        self._kill()

    def _tell_to_stop(self, timeout_s: float) -> bool:
        """Tell it, unless it takes no more commands: then a thread may hold the lock and wait to send one."""
        if not self._send_lock.acquire(timeout=timeout_s):
            return False
        try:
            poll = select.poll()
            poll.register(self._connection, select.POLLOUT)
            if not poll.poll(timeout_s * 1000.0):
                return False
            self._connection.send((Stop(),))
        except (OSError, ValueError):
            return True  # it is gone, or going
        finally:
            self._send_lock.release()
        return True

    def _await_ready(self, timeout_s: float, is_unwanted: Callable[[], bool]) -> EngineInfo:
        waited_s, looked_at = 0.0, time.monotonic()
        while not self._connection.poll(_START_POLL_S):
            if is_unwanted():
                raise EngineStartError("the engine is not wanted any more: its start was broken off")
            now = time.monotonic()
            waited_s, looked_at = waited_s + min(now - looked_at, _MAX_LOOK_S), now
            if waited_s >= timeout_s:
                raise EngineStartError(
                    f"the engine was not ready after {timeout_s:g} s ({self.progress()}); allow it more time"
                )
        answer = self._connection.recv()
        if isinstance(answer, StartFailed):
            raise EngineStartError(f"{answer.code}: {answer.message}", answer.code)
        assert isinstance(answer, Ready), f"the engine sent {type(answer).__name__}"
        return answer.info

    def _died(self) -> EngineDied:
        if self._hung is not None:
            return EngineHung(self._final_exitcode(), self._hung)
        return EngineDied(self._final_exitcode())

    def _final_exitcode(self) -> int | None:
        return None if self._child is None else self._child.exitcode

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
