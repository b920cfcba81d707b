"""Nothing of a loader process stays when its engine goes, whichever way that goes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.polling import eventually
from workers.engine.lora.loading.child import LoaderChild

ROOT = Path(__file__).parents[6]


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_closing_ends_the_process_and_leaves_no_file_open() -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    child = LoaderChild()
    pid = child.pid

    child.close()
    child.close()

    assert not psutil.pid_exists(pid)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_forgetting_it_ends_it_too() -> None:
    child = LoaderChild()
    pid = child.pid

    del child
    gc.collect()

    assert not psutil.pid_exists(pid)


SCRIPT = """
    import sys
    from workers.engine import EngineConfig, LLMEngine

    print("imported", flush=True)
    engine = LLMEngine(EngineConfig(model=sys.argv[1], enable_lora=True, num_threads=1))
    print(engine._parts.adapters._loads._loader._child.pid, flush=True)
    if sys.argv[2] == "killed":
        sys.stdin.read()
"""


@pytest.mark.parametrize("ending", ["killed", "returns"])
def test_a_script_without_a_main_guard_runs_once_and_leaves_no_process(
    checkpoint: Path, tmp_path: Path, ending: str
) -> None:
    script = tmp_path / "offline.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(checkpoint), ending],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert parent.stdout.readline() == "imported\n"
        pid = int(parent.stdout.readline())
        if ending == "killed":
            parent.kill()

        assert parent.wait(60) == (-signal.SIGKILL if ending == "killed" else 0)
        eventually(lambda: _is_gone(pid), what="the loader's end")
        assert parent.stdout.read() == ""
        assert parent.stderr.read() == ""
