"""A real `python -m workers` under a test's control."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.workers.scripted_leader import ScriptedLeader
from tests.polling import eventually

ROOT = Path(__file__).parents[3]
START_TIMEOUT_S = 180.0


class WorkerProcess:
    """One worker process; its incarnations come and go within it."""

    def __init__(
        self, redis_url: str, database_url: str, store: Path, model: Path, folder: Path, **settings: object
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ready_file = folder / "ready"
        self.log_path = folder / "worker.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "LORAYARD_REDIS_URL": redis_url,
            "LORAYARD_DATABASE_URL": database_url,
            "LORAYARD_MODEL": str(model),
            "LORAYARD_ADAPTER_STORE": str(store),
            "LORAYARD_WORKER_NAME": "worker-1",
            "LORAYARD_READY_FILE": str(self.ready_file),
            "LORAYARD_DRAIN_GRACE_S": "10",
            "PYTHONPATH": str(ROOT),
            **{f"LORAYARD_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.command = [sys.executable, "-m", "workers"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        if error is not None:
            print(self.log_path.read_text()[-4000:])

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, once started."""
        assert self._process is not None, "the worker was not started"
        return self._process

    def await_ready(self) -> None:
        """Wait until it can take jobs."""
        try:
            eventually(lambda: self.ready_file.exists() or self.process.poll() is not None, START_TIMEOUT_S)
        finally:
            assert self.process.poll() is None, self.log_path.read_text()[-4000:]

    def terminate(self, timeout_s: float = 30.0) -> int:
        """Send SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    @contextmanager
    def stopped_engine(self) -> Iterator[None]:
        """Stop the engine for a while: what runs on it outlasts all that is done meanwhile."""
        (engine,) = self.engine_pids()
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def await_draining(self) -> None:
        """Wait until it says that it drains."""
        eventually(lambda: any("worker.draining" in line for line in self.log_lines()), what="a drain")

    def incarnation(self, leader: ScriptedLeader) -> str:
        """Ask the ledger which of its ready incarnations is this process's, once there is one."""
        return eventually(
            lambda: next(
                (row.incarnation for row in leader.ready_workers() if self.has_logged(row.incarnation)), ""
            ),
            START_TIMEOUT_S,
            "a ready incarnation",
        )

    def has_logged(self, incarnation: str) -> bool:
        """Whether this process has been ready as the given incarnation."""
        return any("worker.ready" in line and incarnation[:8] in line for line in self.log_lines())

    def log_lines(self) -> list[str]:
        """Read what the process has logged so far."""
        return self.log_path.read_text().splitlines()

    def engine_pids(self) -> list[int]:
        """List the live children that run an engine."""
        return [
            pid for pid in children_of(self.process.pid) if "workers.engine.serving.child" in command_of(pid)
        ]


def children_of(pid: int) -> list[int]:
    """List the live children of a process."""
    tasks = Path(f"/proc/{pid}/task")
    found = [(task / "children").read_text().split() for task in tasks.iterdir()] if tasks.exists() else []
    return [int(child) for children in found for child in children]


def command_of(pid: int) -> str:
    """Read a process's command line; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def packages_in(pid: int) -> set[str]:
    """Name the installed packages whose compiled code a process has loaded."""
    return set(re.findall(r"/site-packages/(\w+)/", Path(f"/proc/{pid}/maps").read_text()))


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def once(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait for a condition."""
    eventually(condition, timeout_s, what)
