"""The engine's hold on its loader process: started as a program, gone with the engine whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref

from workers.engine.core import parent_death
from workers.engine.lora.loading.channel import Channel, channel_pair

_REAP_TIMEOUT_S = 5.0
_START = """
import runpy, sys
runpy.run_path(sys.argv[1])["die_with_parent"](int(sys.argv[2]))
from workers.engine.lora.loading.process import main
main(int(sys.argv[3]))
"""
"""Its parent may die while it still imports torch, which takes seconds: that is provided for first of all."""


class LoaderChild:
    """A running loader process and the channel to it; `close`, garbage collection and exit all end it."""

    def __init__(self) -> None:
        ours, theirs = channel_pair()
        ours.setblocking(False)
        self.channel = Channel(ours)
        try:
            self._life = _Life(theirs)
        except BaseException:
            ours.close()
            raise
        self._end = weakref.finalize(self, _end, self._life, ours, os.getpid())

    @property
    def pid(self) -> int:
        return self._life.popen.pid

    @property
    def exitcode(self) -> int | None:
        """How the process ended; negative for a signal. Waits a moment for one that is about to."""
        self._life.thread.join(_REAP_TIMEOUT_S)
        return self._life.popen.returncode

    def close(self) -> None:
        """Kill the process, which has nothing to lose; closing twice does nothing."""
        self._end()


class _Life:
    """Spawns the process and outlives it: the parent-death signal is sent when the spawning *thread* ends."""

    def __init__(self, theirs: socket.socket) -> None:
        self.popen: subprocess.Popen[bytes]
        self._spawn_error: OSError | None = None
        self._is_spawned = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(theirs,), name="loader-keeper", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:  # no more threads are to be had
            theirs.close()
            raise
        self._is_spawned.wait()
        if self._spawn_error is not None:
            raise self._spawn_error

    def _run(self, theirs: socket.socket) -> None:
        try:
            self.popen = _spawn(theirs.fileno())
        except OSError as error:
            self._spawn_error = error
            return
        finally:
            # Only the child may hold its end, or its death would not end the channel.
            theirs.close()
            self._is_spawned.set()
        self.popen.wait()


def _spawn(file: int) -> subprocess.Popen[bytes]:
    # The child must find the very modules that its parent has, and one thread is all it may use.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module, and two numbers
        [sys.executable, "-P", "-c", _START, parent_death.__file__, str(os.getpid()), str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[file],
        env=environment,
        # A terminal's Ctrl-C is for the engine. A session of its own would make the niceness void.
        process_group=0,
    )


def _end(life: _Life, ours: socket.socket, owner_pid: int) -> None:
    ours.close()
    if os.getpid() != owner_pid:
        return  # a forked copy of the engine's process ends: the loader is not its own
    life.popen.send_signal(signal.SIGKILL)
    life.thread.join(_REAP_TIMEOUT_S)
