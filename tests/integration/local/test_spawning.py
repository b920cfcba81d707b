"""Whenever a holder dies, and wherever the disk is full, no process is left that was not written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorayard.local.child import Child, ChildSpec

_SPAWNER = Path(__file__).with_name("spawner.py")
_REPOSITORY = Path(__file__).parents[3]


def outcomes(mode: str, folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(_SPAWNER), mode, str(folder)],
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_program_runs_only_once_it_is_written_down(tmp_path: Path) -> None:
    written = tmp_path / "written"
    look = ("/bin/sh", "-c", f"test -e {written} && echo in time")

    def write_down(child: Child) -> None:
        assert child.wait(0.3) is None  # long enough for a program that does not wait
        written.touch()

    child = Child(ChildSpec("probe", look, tmp_path / "log", {}), before_run=write_down)
    child.finish(30)

    assert "in time" in child.log_tail()


def test_a_program_that_cannot_be_written_down_never_runs(tmp_path: Path) -> None:
    def fail(_child: Child) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        Child(ChildSpec("probe", ("/bin/echo", "ran"), tmp_path / "log", {}), before_run=fail)

    assert "/bin/echo was not started" in (tmp_path / "log").read_text()


def test_a_holder_killed_at_any_point_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    points = outcomes("killed", tmp_path)

    assert len(points) > 20
    assert [point for point in points if point["said"] == "something is left"] == []
    assert [point for point in points if point["ran"] and not point["written"]] == []
    assert points[-1]["ran"]


def test_a_disk_that_is_full_at_any_point_of_a_start_is_one_sentence(tmp_path: Path) -> None:
    starts = outcomes("full", tmp_path)

    *failed, last = starts
    assert len(failed) > 8
    for start in failed:
        assert "No space left on device" in start["said"]
        assert "see that" in start["said"]
        assert "\n" not in start["said"]
    assert last["said"] == "started"
    assert {start["left"] for start in starts} == {0}
