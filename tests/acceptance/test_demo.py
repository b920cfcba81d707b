"""`make demo` is a promise of the README: it ends well, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def test_the_demo_ends_well_and_leaves_no_process(tmp_path: Path) -> None:
    mark = f"LORAYARD_TEST_MARK={tmp_path}"
    name, _, value = mark.partition("=")

    run = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    jobs = 440
    assert re.search(
        rf"^demo: jobs={jobs} succeeded={jobs} wrong=0 webhooks_verified={jobs} flower_tasks={jobs} "
        r"tokens_per_s=[1-9]\d*$",
        run.stdout.splitlines()[-1],
    )
    assert not [process for process in psutil.process_iter() if _bears(process, name, value)]


def _bears(process: psutil.Process, name: str, value: str) -> bool:
    """Tell a process of the demo by the environment that it inherited."""
    try:
        return process.environ().get(name) == value
    except psutil.Error:
        return False
