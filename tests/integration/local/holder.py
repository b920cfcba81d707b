"""A process that holds a stack of servers until it is killed: run by tests as a script.

Prints one line of JSON with the pids of everything that must die with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from lorayard.local import SERVERS, Stack, StackConfig
from lorayard.local.child import ChildSpec
from lorayard.local.processes import descendants

_HELPED = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").close()
os.read(os.open("/dev/ptmx", os.O_RDWR), 1)
"""


def main(state_dir: Path) -> None:
    """Start the servers and, as a worker would, a child that has a child; then wait for the end."""
    stack = Stack(StackConfig(state_dir=state_dir, parts=SERVERS, durable=False))
    stack.start()
    registry = stack._started().registry
    ready = state_dir / "helped"
    argv = (sys.executable, "-c", _HELPED, str(ready))
    helped = registry.spawn(ChildSpec("helped", argv, state_dir / "helped.log", dict(os.environ)))
    helped.wait_ready(ready.exists, 10)
    family = [[identity.pid, identity.start_ticks] for identity in descendants(os.getpid())]
    print(json.dumps({"family": family, "watchdog": registry.watchdog_pid}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
