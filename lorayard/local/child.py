"""Runs one foreground process that cannot outlive this one, and says why it failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lorayard.local.errors import ChildFailed
from lorayard.local.processes import ProcessIdentity, identify, kill_group, kill_tree

_EXEC_CHILD = Path(__file__).with_name("exec_child.py")
_POLL_S = 0.02
_TAIL_LINES = 30
_TAIL_BYTES = 16_384

# The kernel sends the parent-death signal when the *thread* that forked ends. This thread ends with the
# process, so that a child may be started from any thread.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lorayard-spawn")


class UnixUser(NamedTuple):
    """The user and group that a child runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run: the whole environment is given, nothing is inherited."""

    name: str
    argv: tuple[str, ...]
    log_path: Path
    env: Mapping[str, str] = field(repr=False)
    cwd: Path | None = None
    user: UnixUser | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL


class Child:
    """One process in a session and process group of its own, with its output in a log file."""

    def __init__(
        self,
        spec: ChildSpec,
        pause: Callable[[float], None] = time.sleep,
        before_run: Callable[[Child], None] | None = None,
    ) -> None:
        """`pause` takes seconds between two looks at the process; what it raises ends the waiting.

        The process has its id and does not yet run its program while `before_run` is called; if that raises,
        or this process dies in it, the program is never run.
        """
        self.spec = spec
        self._pause = pause
        self._returncode: int | None = None
        self._bury_lock = threading.Lock()
        self._log_start = spec.log_path.stat().st_size if spec.log_path.exists() else 0
        self._process = _spawner.submit(_spawn, spec).result()
        identity = identify(self._process.pid)
        assert identity is not None, "a child that nobody has waited for keeps its pid"
        self.identity: ProcessIdentity = identity
        self._run(before_run)

    @property
    def name(self) -> str:
        """Name the process as its log and errors do."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """Return the process's id, which stays after its end."""
        return self.identity.pid

    @property
    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit status (negative: the signal that ended it), None while it runs."""
        with self._bury_lock:
            if self._returncode is None and self._has_ended():
                # Its pid is held by the zombie until wait(), so that this can hit no other group.
                kill_group(self.identity)
                self._returncode = self._process.wait()
            return self._returncode

    def stop(self, grace_s: float = 10.0) -> int:
        """Ask the process to end, and SIGKILL its whole group when it has not within `grace_s`."""
        self.request_stop()
        return self.end_by(time.monotonic() + grace_s)

    def request_stop(self) -> None:
        """Ask the process to end and return at once."""
        # To the leader alone, as in a container: a group-wide SIGTERM would take a draining worker's helpers
        # from under it.
        self.signal(self.spec.stop_signal)

    def end_by(self, deadline_s: float) -> int:
        """Wait for the end until this monotonic time, then SIGKILL the whole group; return its status."""
        code = self.wait(deadline_s - time.monotonic())
        return self.kill() if code is None else code

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process itself; nothing happens once it has ended."""
        if self.alive:
            self.identity.send(signum)

    def kill(self) -> int:
        """SIGKILL the process, its group and its descendants, and return the exit status."""
        if self.alive:
            kill_tree(self.identity)
        while (code := self.wait(60.0)) is None:
            kill_group(self.identity)  # stuck in the kernel: nothing else can be done but to wait
        return code

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit status, or None when the process still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (code := self.returncode) is None and time.monotonic() < deadline:
            self._pause(_POLL_S)
        return code

    def finish(self, timeout_s: float) -> None:
        """Return once the process has done its work; raise ChildFailed if it fails or takes too long."""
        code = self.wait(timeout_s)
        if code is None:
            self.kill()
            raise self.failure(f"did not end within {timeout_s:g} s")
        if code != 0:
            raise self.failure(_ending(code))

    def wait_ready(self, probe: Callable[[], bool], timeout_s: float) -> None:
        """Return once `probe` is true; raise ChildFailed if the process dies first or time runs out."""
        deadline = time.monotonic() + timeout_s
        while not probe():
            self.check_alive()
            if time.monotonic() >= deadline:
                raise self.failure(f"was not ready within {timeout_s:g} s")
            self._pause(_POLL_S)

    def check_alive(self) -> None:
        """Raise ChildFailed with the end of the log if the process has ended."""
        if (code := self.returncode) is not None:
            raise self.failure(_ending(code))

    def failure(self, what: str) -> ChildFailed:
        """Build the error that says what happened to this process, where its log is and how it ends."""
        return ChildFailed(f"{self.name} (pid {self.pid}) {what}; log: {self.spec.log_path}", self.log_tail())

    def log_tail(self) -> str:
        """Return the last lines that this run (not an earlier one) wrote to the log."""
        with self.spec.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-_TAIL_LINES:])

    def _run(self, before_run: Callable[[Child], None] | None) -> None:
        gate = self._process.stdin
        assert gate is not None
        try:
            if before_run is not None:
                before_run(self)
        except BaseException:
            gate.close()
            self._process.wait()
            raise
        with gate, contextlib.suppress(BrokenPipeError):  # it has failed already, and its log says how
            gate.write(b"\n")

    def _has_ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None


def _spawn(spec: ChildSpec) -> subprocess.Popen[bytes]:
    user = spec.user or UnixUser(-1, -1)
    bonds = [os.getpid(), int(spec.death_signal), user.uid, user.gid]
    with spec.log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603  programs and arguments are the stack's own
            [sys.executable, "-I", "-S", str(_EXEC_CHILD), *map(str, bonds), *spec.argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(spec.env),
            cwd=spec.cwd,
            start_new_session=True,
            bufsize=0,
        )


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
