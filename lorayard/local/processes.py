"""Identifies processes so that a recycled pid is never mistaken for one of ours."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# Fields of /proc/<pid>/stat after the command's closing parenthesis, which may itself hold spaces.
_STATE, _PARENT_PID, _START_TICKS = 0, 1, 19


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid together with its start time: unique for as long as the machine is up."""

    pid: int
    start_ticks: int

    def is_running(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_START_TICKS]) == self.start_ticks and fields[_STATE] != "Z"

    def send(self, signum: signal.Signals) -> None:
        """Signal this very process; nothing happens once it is gone."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has this pid now, or None."""
    fields = _stat(pid)
    return None if fields is None else ProcessIdentity(pid, int(fields[_START_TICKS]))


def descendants(pid: int) -> list[ProcessIdentity]:
    """Return the children of `pid`, their children and so on, whatever their process groups."""
    children: dict[int, list[ProcessIdentity]] = {}
    for identity, parent_pid in _every_process():
        children.setdefault(parent_pid, []).append(identity)
    found: list[ProcessIdentity] = []
    frontier = [pid]
    while frontier:
        born = children.get(frontier.pop(), [])
        found += born
        frontier += [identity.pid for identity in born]
    return found


def kill_tree(leader: ProcessIdentity) -> None:
    """SIGKILL a group's leader, its whole process group and its descendants in other groups.

    Postgres gives each backend a session of its own, so its process group alone would leave them. The
    leader is stopped first: it must not fork between the count and the kill.
    """
    leader.send(signal.SIGSTOP)
    family = descendants(leader.pid)
    kill_group(leader)
    for identity in family:
        identity.send(signal.SIGKILL)


def kill_group(leader: ProcessIdentity) -> None:
    """SIGKILL the process group that `leader` leads; the caller must know that its pid is not reused."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)


def works_in(folder: Path) -> bool:
    """Whether any process has `folder` as its working directory, as every Postgres process has its data."""
    return any(_working_directory(identity.pid) == folder for identity, _ in _every_process())


def boot_id() -> str:
    """Return an id of this boot of the machine, without which a start time means nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _every_process() -> Iterator[tuple[ProcessIdentity, int]]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            yield ProcessIdentity(int(entry.name), int(fields[_START_TICKS])), int(fields[_PARENT_PID])


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _working_directory(pid: int) -> Path | None:
    try:
        return (_PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None  # gone, or another user's: not ours
