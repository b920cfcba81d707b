"""The engine's hold on its loader process: a program or a copy, gone with the engine whatever happens."""

from __future__ import annotations

import socket
import subprocess
import weakref
from collections.abc import Callable

from workers.engine.core.child_process import NO_CARDS, ChildProcess
from workers.engine.lora.loading import process
from workers.engine.lora.loading.channel import Channel, channel_pair

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", **NO_CARDS}  # one thread is all it may use
PROCESS_NAME = "lorayard-loader"
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
        # A terminal's Ctrl-C is for the engine. A session of its own would make the niceness void.
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

    @property
    def pid(self) -> int:
        """Return the loader's process id."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """How the process ended; negative for a signal. Waits a moment for one that is about to."""
        return self._process.exitcode

    def close(self) -> None:
        """Kill the process, which has nothing to lose; closing twice does nothing."""
        self._end()
        self._process.kill()
