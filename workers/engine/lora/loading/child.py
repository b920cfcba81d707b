"""The engine's hold on its loader process: a program or a copy, gone with the engine whatever happens."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from workers.engine.core.child_process import NO_CARDS, ChildProcess
from workers.engine.lora.loading import process
from workers.engine.lora.loading.channel import Channel, channel_pair

AHEAD_NICENESS = 19
"""Of a loader none of whose loads anybody waits for."""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", **NO_CARDS}  # one thread is all it may use
PROCESS_NAME = "lorayard-loader"
_CAP_SYS_NICE = 23  # its bit in capabilities(7)
_LIMIT_OF_NICENESS_0 = 20  # one less for each step of niceness, setrlimit(2)
_PROGRAM = """
from workers.engine.lora.loading.process import main
main(int(sys.argv[3]))
"""


def spawned(end: socket.socket) -> ChildProcess:
    """Start a loader as a program, which takes as long as importing torch. Raises OSError or RuntimeError."""
    return ChildProcess(
        _PROGRAM,
        end.fileno(),
        pass_fds=[end.fileno()],
        stdout=subprocess.DEVNULL,
        environment=_ENVIRONMENT,
        # A terminal's Ctrl-C is for the engine. In a session of its own its niceness would count for nothing
        # beside the engine's: Linux shares processors out by sessions first.
        process_group=0,
    )


def forked(end: socket.socket) -> ChildProcess:
    """Copy this process, as `ChildProcess.forked` allows, to be a loader. Raises OSError."""
    file = end.fileno()
    return ChildProcess.forked(
        lambda: process.main(file), name=PROCESS_NAME, file=file, environment=_ENVIRONMENT
    )


class LoaderChild:
    """A running loader process and the channel to it; `close`, garbage collection and exit all end it."""

    def __init__(self, start: Callable[[socket.socket], ChildProcess] = spawned) -> None:
        ours, theirs = channel_pair()
        ours.setblocking(False)
        self.channel = Channel(ours)
        try:
            # Only the child may hold its end, or its death would not end the channel.
            with theirs:
                self._process = start(theirs)
        except BaseException:
            ours.close()
            raise
        self._end = weakref.finalize(self, ours.close)
        self._gives_way = False

    @property
    def pid(self) -> int:
        """Return the loader's process id."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """How the process ended; negative for a signal. Waits a moment for one that is about to."""
        return self._process.exitcode

    def give_way(self, does: bool) -> None:
        """Leave the processors to whoever else wants them, or no longer, which takes a privilege.

        Without `may_take_back_niceness` this does nothing: the process would have to give way forever.
        """
        if does != self._gives_way and may_take_back_niceness():
            niceness = AHEAD_NICENESS if does else own_niceness()
            with suppress(ProcessLookupError):  # it died, which the channel will tell
                os.setpriority(os.PRIO_PROCESS, self.pid, niceness)
            self._gives_way = does

    def close(self) -> None:
        """Kill the process, which has nothing to lose; closing twice does nothing."""
        self._end()
        self._process.kill()


def own_niceness() -> int:
    """Return this process's niceness."""
    return os.getpriority(os.PRIO_PROCESS, os.getpid())


@cache
def may_take_back_niceness() -> bool:
    """Whether a child may become as little nice again as this process: by CAP_SYS_NICE, or by its limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if limit == resource.RLIM_INFINITY or limit >= _LIMIT_OF_NICENESS_0 - own_niceness():
        return True
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False
