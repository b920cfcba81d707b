"""Nothing of a loader process stays when its engine goes, whichever way that goes."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.polling import eventually
from workers.engine.lora.loading import process as loader_process
from workers.engine.lora.loading.channel import Channel
from workers.engine.lora.loading.child import PROCESS_NAME, LoaderChild, forked

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


def test_a_copy_sees_no_card_and_holds_nothing_open_of_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(file: int) -> None:
        """Stand where a loader's main does."""
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        where = {number: str(Path(f"/proc/self/fd/{number}").readlink()) for number in range(2)}
        files = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
        told = (
            getenv(b"CUDA_VISIBLE_DEVICES"),
            getenv(b"OMP_NUM_THREADS"),
            where,
            files - {file},
            os.getpgrp(),
        )
        with socket.socket(fileno=file) as end:
            Channel(end).send(told)
            signal.pause()  # until it is killed, for the end of the channel may come sooner

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    monkeypatch.setattr(loader_process, "main", tell)
    files = len(list(Path("/proc/self/fd").iterdir()))
    copy = LoaderChild(forked)

    assert select.select([copy.channel], [], [], 60)[0]
    card, threads, where, others, group = copy.channel.receive()

    assert (card, threads, where) == (b"", b"1", {0: os.devnull, 1: os.devnull})
    assert len(others - {0, 1, 2}) == 1  # the folder that it was just reading
    assert group == copy.pid != os.getpgrp()
    assert psutil.Process(copy.pid).name() == PROCESS_NAME
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    copy.close()
    copy.close()
    assert not psutil.pid_exists(copy.pid)
    assert copy.exitcode == -signal.SIGKILL
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_a_copy_that_fails_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(file: int) -> None:
        raise RuntimeError(f"{file} is of no use")

    monkeypatch.setattr(loader_process, "main", fail)
    copy = LoaderChild(forked)

    assert copy.exitcode == 1
    assert "is of no use" in capfd.readouterr().err
    with pytest.raises(EOFError):
        copy.channel.receive()


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
