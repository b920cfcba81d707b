"""A holder that dies, or finds the disk full, at each point of a start in turn: run by tests as a script.

`killed FOLDER`: at each line between a child's fork and the return of its start, the holder is killed. Prints
a line for each point: whether the child's program ran, and whether it was written down.
`full FOLDER`: at each thing that a start of Redis makes in its state folder, the disk is full. Prints what
the start said each time, and what was left running.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import threading
import time
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from lorayard.local import LocalStackError, Stack, StackConfig, child
from lorayard.local.child import ChildSpec
from lorayard.local.processes import descendants
from lorayard.local.registry import ChildRegistry
from lorayard.local.state import StateDirectory

_ROOM = str(Path(child.__file__).parent)
_PROGRAM = ("/bin/sh", "-c", "echo $$; sleep 600 & wait")  # its helper is in its process group
_PATIENCE_MS = 30_000


def _spawn_and_die(folder: Path, log: Path, at_point: int) -> None:
    """Start a process and die at the n-th line of our own code after its fork, or once its program runs."""
    registry = ChildRegistry(StateDirectory(folder))
    points, forked, seen = count(1), False, set[tuple[str, int]]()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal forked
        if not frame.f_code.co_filename.startswith(_ROOM):
            return None
        forked = forked or (event == "return" and frame.f_code.co_name == "_spawn")
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and forked and place not in seen:
            seen.add(place)
            if next(points) == at_point:
                _await_gate()
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    probe = registry.spawn(ChildSpec("probe", _PROGRAM, log, dict(os.environ)))
    sys.settrace(None)
    while not descendants(probe.pid):
        time.sleep(0.005)


def _await_gate() -> None:
    """Let the child get as far as it can, where the kernel says that it waits for the holder's word."""
    waiting = [one.pid for one in descendants(os.getpid()) if _is_at_the_gate(one.pid)]
    deadline = time.monotonic() + 1.0
    while any(_is_at_the_gate(pid) and "pipe" not in _wchan(pid) for pid in waiting):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.002)


def _is_at_the_gate(pid: int) -> bool:
    return "exec_child.py" in Path(f"/proc/{pid}/cmdline").read_text()


def _wchan(pid: int) -> str:
    told = Path(f"/proc/{pid}/wchan").read_text()
    return "pipe, as far as it is told" if told == "0" else told


def _killed(folder: Path) -> None:
    for point in count(1):
        state, log = folder / str(point), folder / f"{point}.fifo"
        os.mkfifo(log)
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
        holder = os.fork()
        if not holder:
            _spawn_and_die(state, log, point)
            os._exit(0)
        _, status = os.waitpid(holder, 0)
        said = _read_to_the_end(reader)
        rows = json.loads((state / "processes.json").read_text())["processes"]
        written = {str(row["pid"]) for row in rows}
        outcome = {"point": point, "ran": said.isdigit(), "written": said in written, "said": said}
        print(json.dumps(outcome), flush=True)
        if not os.WIFSIGNALED(status):
            return


def _read_to_the_end(reader: int) -> str:
    """Read what the child and all that it started say: the end comes when none of them is left."""
    said, waiting = b"", select.poll()
    waiting.register(reader, select.POLLIN | select.POLLHUP)
    while waiting.poll(_PATIENCE_MS):
        if not (block := os.read(reader, 4096)):
            os.close(reader)
            return said.decode().strip()
        said += block
    return "something is left"


def _full(folder: Path) -> None:
    places: list[int] = []  # how many things may still be made

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            not places
            or event not in ("open", "os.mkdir", "os.rename")
            or not _makes(event, arguments, folder)
        ):
            return
        places[0] -= 1
        if places[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(hook)
    for room in count():
        stack = Stack(StackConfig(state_dir=folder / "state", parts=frozenset({"redis"}), durable=False))
        places[:] = [room]
        try:
            stack.start()
            said = "started"
        except LocalStackError as error:
            said = str(error)
        stack.stop()
        places.clear()
        left = len(descendants(os.getpid()))
        print(json.dumps({"room": room, "said": said, "left": left}), flush=True)
        if said == "started":
            return


def _makes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    if not str(arguments[0]).startswith(str(folder)):
        return False
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    {"killed": _killed, "full": _full}[sys.argv[1]](Path(sys.argv[2]))
