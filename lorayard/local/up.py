"""Runs the local stack in the foreground until it is told to stop."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from types import FrameType

from rich.console import Console
from rich.table import Table

from lorayard.local.private_files import write_private
from lorayard.local.settings import StackSettings
from lorayard.local.stack import Stack
from lorayard.local.supervision import Backoff

_POLL_S = 0.25
_SERVERS = frozenset({"redis", "postgres"})


class _StopRequested(BaseException):
    """Raised by a signal that comes before the stack is up, to break off the start."""


class _StopSwitch:
    """Turns SIGINT and SIGTERM into the wish to stop."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.break_off = True

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        already, break_off = self.requested.is_set(), self.break_off
        self.requested.set()
        if break_off and not already:
            raise _StopRequested


def up(settings: StackSettings | None = None, console: Console | None = None) -> int:
    """Start the stack, show where it listens, and keep it running until SIGINT or SIGTERM.

    Return the exit status: 0 after a stop that was asked for, 1 when a server died. Call it from the main
    thread. Raises LocalStackError when the stack cannot start.
    """
    console = console or Console()
    switch = _StopSwitch()
    switch.install()
    stack = Stack((settings or StackSettings()).to_config())
    try:
        with console.status("starting …"):
            stack.start()
        switch.break_off = False
        _show_addresses(stack, console)
        return _supervise(stack, switch, console)
    except _StopRequested:
        return 0
    finally:
        switch.break_off = False
        with console.status("stopping: workers finish what they run …"):
            stack.stop()
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
