"""Programs in processes of their own that end with this one: the engine, its loader, its grammar check.

They are started as programs, not by multiprocessing: a user's script without a `__main__` guard must not be
imported again by its child. A program of ours that has just begun may also be copied, as `forked` says.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from workers.engine.core import parent_death

REAP_TIMEOUT_S = 5.0
NO_CARDS = {"CUDA_VISIBLE_DEVICES": ""}
"""The environment of a child that shall touch no card: a context there would take its memory."""

_START = """
import gc, runpy, signal, sys
gc.disable()
sys.modules["rich"] = None
runpy.run_path(sys.argv[1])["die_with_parent"](int(sys.argv[2]))
signal.signal(signal.SIGINT, signal.SIG_IGN)
"""
"""The parent may die while its child still imports torch, which takes seconds: that is provided for first of
all. A terminal's Ctrl-C reaches the whole process group, and what it means is for the parent to say.
What is imported stays: the program's main looks for garbage from then on, by `collect_garbage`. structlog
does without rich, which takes 4 MB and colours lines for a terminal."""


def collect_garbage() -> None:
    """Look for garbage, which a child's start puts off, though never among what has been imported."""
    gc.freeze()
    gc.enable()


class ChildProcess:
    """A running program; `kill`, garbage collection and exit all end it, and so does this process's death."""

    def __init__(
        self,
        program: str,  # Python statements, with `arguments` in sys.argv[3:]
        *arguments: object,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        environment: Mapping[str, str] | None = None,  # beside what this process has
        process_group: int | None = None,
        on_spawned: Callable[[], None] = lambda: None,  # called however the spawning went
    ) -> None:
        """Start it. Raises OSError, or RuntimeError if no more threads are to be had."""
        words = [sys.executable, "-P", "-c", _START + program, parent_death.__file__, str(os.getpid())]
        # The child must find the very modules that its parent has.
        path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

        def spawn() -> subprocess.Popen[str]:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and code
                [*words, *map(str, arguments)],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                env={**os.environ, **path, **(environment or {})},
                process_group=process_group,
                text=True,
            )

        try:
            self._life = _Life(spawn)
        finally:
            on_spawned()
        self._end = weakref.finalize(self, _end, self._life, os.getpid())

    @classmethod
    def forked(cls, run: Callable[[], None], *, name: str, file: int, environment: Mapping[str, str]) -> Self:
        """Run a function in a copy of this process, to which `file` and standard error alone stay open.

        `name`, of 15 characters at most, is what `ps -o comm` and `top` call it: its command line is ours.

        For a main thread that has no other beside it and has touched no card: what is imported need not be
        imported again. Raises OSError.
        """
        parent_pid = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 warns of any other thread: numpy's OpenBLAS has some, and sees to forks itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _run_copy(run, parent_pid, name, file, environment)
        child = cls.__new__(cls)
        child._life = _Life(lambda: _Copy(pid))  # noqa: SLF001 - its own class
        child._end = weakref.finalize(child, _end, child._life, parent_pid)  # noqa: SLF001
        return child

    @property
    def pid(self) -> int:
        """The process's id, also after its end."""
        return self._life.popen.pid

    @property
    def stdin(self) -> IO[str]:
        """Its standard input, if a pipe was asked for."""
        return _pipe(self._life.popen.stdin)

    @property
    def stdout(self) -> IO[str]:
        """Its standard output, if a pipe was asked for."""
        return _pipe(self._life.popen.stdout)

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._life.popen.returncode is None and self._life.keeper.is_alive()

    @property
    def exitcode(self) -> int | None:
        """How it ended, negative for a signal. Waits a moment for one that is about to."""
        return self.wait(REAP_TIMEOUT_S)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end and return how it ended; None if it still runs."""
        self._life.keeper.join(timeout_s)
        return self._life.popen.returncode

    def signal_kill(self) -> None:
        """Have it end without waiting for that; may be called from another thread."""
        self._life.popen.send_signal(signal.SIGKILL)

    def kill(self) -> None:
        """End it by force, and close its pipes; once more does nothing."""
        self._end()


class _Life:
    """Spawns the process and outlives it: the parent-death signal is sent when the spawning *thread* ends."""

    def __init__(self, spawn: Callable[[], subprocess.Popen[str] | _Copy]) -> None:
        self.popen: subprocess.Popen[str] | _Copy
        self._spawn = spawn
        self._spawn_error: Exception | None = None
        self._is_spawned = threading.Event()
        self.keeper = threading.Thread(target=self._keep, name="child-keeper", daemon=True)
        self.keeper.start()
        self._is_spawned.wait()
        if self._spawn_error is not None:
            raise self._spawn_error

    def _keep(self) -> None:
        try:
            self.popen = self._spawn()
        except Exception as error:  # noqa: BLE001 - raised where the process was asked for
            self._spawn_error = error
            return
        finally:
            self._is_spawned.set()
        try:
            self.popen.wait()
        except BaseException:
            # The kernel is about to do so anyway, as this thread ends: its user sees the process die, and
            # the traceback on standard error says why.
            self.popen.kill()
            raise


class _Copy:
    """A forked process, with the part of `Popen` that is asked for here."""

    stdin = stdout = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for its end; for one thread alone."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:  # once it is reaped, its id may be another's
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Have it end."""
        self.send_signal(signal.SIGKILL)


def _run_copy(
    run: Callable[[], None], parent_pid: int, name: str, file: int, environment: Mapping[str, str]
) -> NoReturn:
    """Make of a copied process what a program of its own would be, run it, and end it."""
    status = 1
    try:
        parent_death.die_with_parent(parent_pid)
        os.setpgid(0, 0)
        Path("/proc/self/comm").write_text(name)
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.closerange(3, file)
        os.closerange(file + 1, os.sysconf("SC_OPEN_MAX"))
        run()
        status = 0
    except BaseException:  # noqa: BLE001 - as at the end of a program
        os.write(2, traceback.format_exc().encode())  # whatever `sys.stderr` stood for in the original
    finally:
        os._exit(status)


def _end(life: _Life, owner_pid: int) -> None:
    pipes: list[Any] = [pipe for pipe in (life.popen.stdin, life.popen.stdout) if pipe is not None]
    if os.getpid() == owner_pid:  # in a forked copy of this process, the child is another's
        life.popen.kill()
        life.keeper.join(REAP_TIMEOUT_S)
    for pipe in pipes:
        try:
            pipe.close()
        except OSError:
            continue  # something unsent that nobody will read


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None, "the process was started without this pipe"
    return pipe
