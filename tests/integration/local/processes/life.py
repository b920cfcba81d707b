"""What the small processes under this folder share: they serve, and write down when they begin and end.

They stand where Lorayard's own processes stand in the stack, so that the stack is tested by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def live(name: str) -> None:
    """Serve until SIGTERM; die before, at once or at the second start, if the environment says so."""
    diary = Path(os.environ["DIARY"])
    own = {key: value for key, value in os.environ.items() if key.startswith(("LORAYARD_", "OMP_", "CUDA_"))}
    diary.with_name(f"{name}.json").write_text(json.dumps(own))
    if name == os.environ.get("DIES"):
        sys.exit(f"{name}: no bread in the house")
    if name == os.environ.get("MISTOLD") and f"{name} began" in diary.read_text():
        sys.exit(2)
    _note(diary, f"{name} began")
    deaf = name == os.environ.get("DEAF")
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN if deaf else lambda signum, frame: _end(diary, name, signum, frame)
    )
    Path(os.environ["LORAYARD_READY_FILE"]).touch()
    while True:
        signal.pause()


def _end(diary: Path, name: str, signum: int, frame: FrameType | None) -> None:
    del signum, frame
    _note(diary, f"{name} ended")
    sys.exit(0)


def _note(diary: Path, line: str) -> None:
    with diary.open("a") as file:
        file.write(f"{line}\n")
