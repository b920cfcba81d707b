"""Runs the local stack in the foreground until it is told to stop."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console
from rich.table import Table

from lorayard.local.errors import LocalStackError
from lorayard.local.private_files import write_private
from lorayard.local.settings import StackSettings
from lorayard.local.stack import Stack
from lorayard.local.supervision import Backoff

_POLL_S = 0.25
# `timeout` and others signal a process and then its whole group: a wish repeated at once is one wish.
_REPEAT_S = 1.0
_SERVERS = frozenset({"redis", "postgres"})


class _BreakOff(BaseException):
    """Raised by a signal, to break off a start or an orderly stop."""


class _StopSwitch:
    """Turns SIGINT and SIGTERM into the wish to stop, and a later one into the wish to stop at once."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.phase: Literal["starting", "running", "stopping"] = "starting"
        self._requested_at_s = 0.0

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        now_s = time.monotonic()
        if self.requested.is_set() and now_s - self._requested_at_s < _REPEAT_S:
            return
        self.requested.set()
        self._requested_at_s = now_s
        if self.phase != "running":
            raise _BreakOff


def up(settings: StackSettings | None = None, console: Console | None = None) -> int:
    """Start the stack, show where it listens, and keep it running until SIGINT or SIGTERM.

    Return the exit status: 0 after a stop that was asked for, 1 when a server died. Call it from the main
    thread. Raises LocalStackError when the stack cannot start.
    """
    console = console or Console()
    config = (settings or StackSettings()).to_config()
    _check_model(config.model)
    stack, switch = Stack(config), _StopSwitch()
    switch.install()
    try:
        with console.status("starting …"):
            stack.start()
        switch.phase = "running"
        _show_addresses(stack, console)
        return _supervise(stack, switch, console)
    except _BreakOff:
        return 0
    finally:
        switch.phase = "stopping"
        _stop(stack, console)


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
    """Start what dies again, with growing delays; a server's death ends the stack."""
    backoff = Backoff()
    while not switch.requested.wait(_POLL_S):
        for part in stack.ended():
            delay_s = backoff.died(part.name, time.monotonic())
            if delay_s is None:
                continue
            console.print(f"[bold red]{part.name} died[/]", highlight=False)
            console.print(str(part.child.failure(f"ended with status {part.child.returncode}")), markup=False)
            if part.name in _SERVERS:
                return 1
            console.print(f"{part.name} starts again in {delay_s:g} s", highlight=False)
        for name in backoff.due(time.monotonic()):
            stack.relaunch(name)
    return 0


def _show_addresses(stack: Stack, console: Console) -> None:
    env = stack.client_env()
    env_file = stack.config.state_dir.resolve() / "client.env"
    write_private(env_file, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items()))
    table = Table(title="Lorayard is up", title_justify="left", show_header=True)
    for heading in ("part", "pid", "where"):
        table.add_column(heading, overflow="fold")
    for name, child in stack.children.items():
        table.add_row(name, str(child.pid), _where(stack, name))
    console.print(table)
    console.print(f"logs: {stack.config.state_dir.resolve() / 'logs'}", markup=False, soft_wrap=True)
    console.print(f"in another shell: source {shlex.quote(str(env_file))}", markup=False, soft_wrap=True)
    console.print("Ctrl-C stops it")


def _where(stack: Stack, name: str) -> str:
    if name == "flower":
        return stack.flower.url
    if name == "redis":
        return f"127.0.0.1:{stack.redis.port}"
    if name == "postgres":
        return f"127.0.0.1:{stack.postgres.port}"
    return ""
