"""Runs the local stack in the foreground until it is told to stop."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console
from rich.table import Table

from lorayard.local.errors import LocalStackError
from lorayard.local.private_files import write_private
from lorayard.local.services import WORKER_PREFIX
from lorayard.local.settings import StackSettings
from lorayard.local.stack import Stack
from lorayard.local.state import unwritable
from lorayard.local.supervision import Backoff
from lorayard.process.environment import BAD_ENVIRONMENT
from lorayard.process.packages import packages_problem

_RESTART_LOOK_S = 0.25
"""How often it is looked whether what died may be started again."""

# `timeout` and others signal a process and then its whole group: a wish repeated at once is one wish.
_REPEAT_S = 1.0
_PIPE_WIDTH = 200
_SERVERS = frozenset({"redis", "postgres"})


class _BreakOff(BaseException):
    """Breaks off a start or an orderly stop, from within a pause."""


class _StopSwitch:
    """Turns SIGINT and SIGTERM into the wish to stop, and a later one into the wish to stop at once.

    The handler writes one byte and no more: what it means is decided where the main thread waits.
    """

    def __init__(self) -> None:
        self.requested = False
        self._phase: Literal["starting", "running", "stopping", "killing"] = "starting"
        self._requested_at_s = 0.0
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._on_signal)

    def started(self) -> None:
        """From now on a wish is noted, and breaks nothing off."""
        self._phase = "running"

    def stopping(self) -> None:
        """From now on a new wish ends the orderly stop."""
        if self._phase != "killing":
            self._phase = "stopping"

    def pause(self, seconds: float | None, until: Sequence[int] = ()) -> None:
        """Wait for so long, None for ever, or until one of these files is readable.

        Raises `_BreakOff` if a wish came that must not wait for what is going on.
        """
        if not self._has_new_wish(seconds, until) or self._phase in ("running", "killing"):
            return
        # A start that is broken off is followed by an orderly stop, and that by force.
        self._phase = "stopping" if self._phase == "starting" else "killing"
        raise _BreakOff

    def _has_new_wish(self, seconds: float | None, until: Sequence[int]) -> bool:
        if self._reader not in select.select([self._reader, *until], [], [], seconds)[0]:
            return False
        os.read(self._reader, 4096)
        now_s = time.monotonic()
        if self.requested and now_s - self._requested_at_s < _REPEAT_S:
            return False
        self.requested = True
        self._requested_at_s = now_s
        return True

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")


def up(settings: StackSettings | None = None, console: Console | None = None) -> int:
    """Start the stack, show where it listens, and keep it running until SIGINT or SIGTERM.

    Return the exit status: 0 after a stop that was asked for, 1 when a server died. Call it from the main
    thread. Raises LocalStackError when the stack cannot start.
    """
    console = console or _console()
    config = (settings or StackSettings()).to_config()
    _check_model(config.model)
    if (problem := packages_problem()) is not None:
        raise LocalStackError(problem)
    switch = _StopSwitch()
    switch.install()
    stack = Stack(config, pause=switch.pause)
    try:
        with console.status("starting …"):
            stack.start()
    except _BreakOff:
        console.print("stopped")
        return 0
    switch.started()
    try:
        _show_addresses(stack, console)
        return _supervise(stack, switch, console)
    finally:
        switch.stopping()
        _stop(stack, console)


def _console() -> Console:
    """Where there is no terminal, rich assumes one of 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _check_model(model: Path | None) -> None:
    if model is None:
        raise LocalStackError("no base model: set LORAYARD_MODEL to the folder of a Hugging Face checkpoint")
    if not (model / "config.json").is_file():
        raise LocalStackError(
            f"LORAYARD_MODEL {model} holds no config.json: name the folder of a Hugging Face checkpoint"
        )


def _stop(stack: Stack, console: Console) -> None:
    try:
        with console.status("stopping: workers finish what they run; Ctrl-C again ends them at once …"):
            stack.stop()
    except _BreakOff:
        pass  # what had not ended yet was killed on the way here
    console.print("stopped")


def _supervise(stack: Stack, switch: _StopSwitch, console: Console) -> int:
    """Start what dies again, with growing delays; a server's death ends the stack.

    A worker that was told nonsense stays down: it would end in the same way forever.
    """
    backoff, hopeless = Backoff(), set[str]()
    while True:
        _await_news(stack, switch, backoff, hopeless)
        if switch.requested:
            return 0
        for part in stack.ended():
            if part.name in hopeless:
                continue
            delay_s = backoff.died(part.name, time.monotonic())
            if delay_s is None:
                continue
            console.print(f"[bold red]{part.name} died[/]", highlight=False)
            failure = part.child.failure(f"ended with status {part.child.returncode}")
            console.print(str(failure), markup=False, soft_wrap=True)
            if part.name in _SERVERS:
                return 1
            if part.name.startswith(WORKER_PREFIX) and part.child.returncode == BAD_ENVIRONMENT:
                hopeless.add(part.name)
                backoff.forget(part.name)
                console.print(
                    f"{part.name} is not started again: its configuration is wrong", highlight=False
                )
                continue
            console.print(f"{part.name} starts again in {delay_s:g} s", highlight=False)
        for name in backoff.due(time.monotonic()):
            try:
                stack.relaunch(name)
            except (LocalStackError, OSError) as error:  # it has not started, and is tried again
                console.print(str(error), markup=False, soft_wrap=True)


def _await_news(stack: Stack, switch: _StopSwitch, backoff: Backoff, hopeless: set[str]) -> None:
    """Return on a wish to stop, when a process has ended, and now and then while a restart is planned."""
    with _ends_of(stack) as ends:  # before the look at who has ended: whoever does so later ends the wait
        seconds = _RESTART_LOOK_S if backoff.is_waiting else None
        if seconds is None and any(part.name not in hopeless for part in stack.ended()):
            seconds = 0.0
        switch.pause(seconds, ends)


@contextmanager
def _ends_of(stack: Stack) -> Iterator[list[int]]:
    """Open a file for each process that runs, which becomes readable when that ends."""
    with ExitStack() as files:
        ends = []
        for child in stack.children.values():
            if child.alive:  # and so not reaped yet: its id is no other's
                ends.append(os.pidfd_open(child.pid))
                files.callback(os.close, ends[-1])
        yield ends


def _show_addresses(stack: Stack, console: Console) -> None:
    env = stack.client_env()
    env_file = stack.config.state_dir.resolve() / "client.env"
    lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    try:
        write_private(env_file, lines)
    except OSError as error:
        raise unwritable(stack.config.state_dir, error, "the stack cannot be shown to clients") from error
    table = Table(title="Lorayard is up", title_justify="left", show_header=True)
    for heading in ("part", "pid", "where"):
        table.add_column(heading, no_wrap=True)
    for name, child in stack.children.items():
        table.add_row(name, str(child.pid), _where(stack, name))
    # A terminal that is too narrow wraps lines, which can be copied then; rich would fold words in cells.
    wide = Console(
        file=console.file, width=max(console.width, _PIPE_WIDTH), force_terminal=console.is_terminal
    )
    wide.print(table)
    console.print(f"logs: {stack.config.state_dir.resolve() / 'logs'}", markup=False, soft_wrap=True)
    console.print(f"in another shell: source {shlex.quote(str(env_file))}", markup=False, soft_wrap=True)
    console.print("Ctrl-C stops it")


def _where(stack: Stack, name: str) -> str:
    if name == "flower":
        return f"http://127.0.0.1:{stack.flower.port} (user and password: LORAYARD_FLOWER_URL in client.env)"
    if name == "redis":
        return f"127.0.0.1:{stack.redis.port}"
    if name == "postgres":
        return f"127.0.0.1:{stack.postgres.port}"
    if name.startswith(WORKER_PREFIX):
        return stack.config.card_of(int(name.removeprefix(WORKER_PREFIX))) or "cpu"
    return ""
