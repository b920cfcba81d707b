"""Holds the state directory: one holder at a time, and a record of its processes for the next one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from lorayard.local.child import Child
from lorayard.local.errors import LocalStackError, StateDirectoryBusy
from lorayard.local.private_files import write_private
from lorayard.local.processes import ProcessIdentity, boot_id, kill_tree

_GRACE_S = 5.0
_POLL_S = 0.05
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What is written down of a process, so that a later holder ends this one and no other."""

    name: str
    identity: ProcessIdentity
    stop_signal: signal.Signals


class StateDirectory:
    """The folder of one stack, locked while this object is held."""

    def __init__(self, path: Path) -> None:
        """Take the lock and end what a dead holder left; raise StateDirectoryBusy if it is held."""
        try:
            self.path = _prepared(path)
            self._records = self.path / "processes.json"
            self._lock = self._acquire()
        except OSError as error:
            raise unwritable(path, error, "nothing was started") from error
        try:
            self.leftovers = self._end_leftovers()
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise unwritable(self.path, error, "nothing was started") from error
            raise

    def log_path(self, name: str) -> Path:
        """Where a process of this name writes its log."""
        return self.path / "logs" / f"{name}.log"

    def ready_path(self, name: str) -> Path:
        """The file that a process of this name touches once it serves."""
        return self.path / "ready" / name

    def record(self, children: Iterable[Child]) -> None:
        """Write down the processes that run now."""
        records = [
            {
                "name": child.name,
                "pid": child.pid,
                "start_ticks": child.identity.start_ticks,
                "stop_signal": int(child.spec.stop_signal),
            }
            for child in children
        ]
        write_private(self._records, json.dumps({"boot_id": boot_id(), "processes": records}, indent=1))

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _acquire(self) -> int:
        lock_path = self.path / "lock"
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} ({' '.join(sys.orig_argv)})".encode(), 0)
        except BlockingIOError:
            os.close(descriptor)
            raise StateDirectoryBusy(
                f"the state directory {self.path} is in use by {lock_path.read_text() or 'another process'}: "
                "stop that one, or choose another directory (LORAYARD_STATE_DIR)"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _end_leftovers(self) -> list[ProcessRecord]:
        """End the recorded processes that still run: in order if they will, in reverse order of start."""
        alive = [record for record in self._read_records() if record.identity.is_running()]
        for record in reversed(alive):
            _log.warning("leftover.ended", name=record.name, pid=record.identity.pid)
            record.identity.send(record.stop_signal)
            _await_end(record.identity)
            if record.identity.is_running():
                kill_tree(record.identity)
                _await_end(record.identity)
        self.record([])
        return alive

    def _read_records(self) -> list[ProcessRecord]:
        try:
            written = json.loads(self._records.read_text())
            if written["boot_id"] != boot_id():
                return []  # start times count from a boot: another boot's prove nothing
            return [
                ProcessRecord(
                    name=str(row["name"]),
                    identity=ProcessIdentity(int(row["pid"]), int(row["start_ticks"])),
                    stop_signal=signal.Signals(int(row["stop_signal"])),
                )
                for row in written["processes"]
            ]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise LocalStackError(
                f"{self._records} is not a record of processes ({error}): see that no process of an earlier "
                "stack runs, and delete the file"
            ) from error


def unwritable(path: Path, error: OSError, what: str) -> LocalStackError:
    """Word that a full or forbidden disk, most likely, has kept something from being written."""
    return LocalStackError(
        f"{what} ({error}): see that {path} can be written and its disk has room, or choose another state "
        "directory (LORAYARD_STATE_DIR)"
    )


def _prepared(path: Path) -> Path:
    # As root, Postgres' own user must pass through to its folder; each folder and secret inside is private.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    if not path.exists():
        path.mkdir(mode=mode, parents=True)
        path.chmod(mode)  # whatever the umask; a folder that was there before keeps its mode
    for name in ("logs", "ready"):
        (path / name).mkdir(mode=0o700, exist_ok=True)
    # Usually made inside somebody's project.
    (path / ".gitignore").write_text("*\n")
    return path.resolve()


def _await_end(identity: ProcessIdentity) -> None:
    deadline = time.monotonic() + _GRACE_S
    while identity.is_running() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
