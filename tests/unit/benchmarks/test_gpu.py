"""The script for a card, rehearsed: what runs every stage here cannot be broken on the day there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as script
from benchmarks.gpu.records import Recorder, read
from benchmarks.gpu.stages import SHARES_S
from benchmarks.gpu.summary import summarize

_ROOT = Path(__file__).parents[3]


BY_THE_SCRIPT = ["environment", "kernels-right"]
IN_ONE_PROCESS = ["engine-right", "kernel-times", "step-times", "quantized-times", "adapters"]
"""Most of the time of a stage in a process of its own goes into importing torch, there and in its loaders."""
NOT_REHEARSED = {"trace", "serve"}
"""Those two take as long as the others together."""


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )


def test_every_stage_is_rehearsed_or_known_not_to_be() -> None:
    assert {*BY_THE_SCRIPT, *IN_ONE_PROCESS, *NOT_REHEARSED} == set(SHARES_S)


def test_stages_run_on_the_cpu_and_find_all_kernels_right(tmp_path: Path) -> None:
    options = ["--rehearse", "--seconds", "1500", "--stages", ",".join(BY_THE_SCRIPT)]
    script_run = _run("benchmarks.gpu", *options, "--out", str(tmp_path))
    written = sorted(path.name for path in tmp_path.iterdir())
    stages_run = _run(
        "tests.unit.benchmarks.rehearsed_stages", str(tmp_path), *IN_ONE_PROCESS, TRITON_INTERPRET="1"
    )

    records = read(tmp_path)
    for finished in (script_run, stages_run):
        assert finished.returncode == 0, finished.stdout + finished.stderr
    assert {one["stage"]: one["outcome"] for one in records if one["kind"] == "stage"} == dict.fromkeys(
        BY_THE_SCRIPT, "done"
    )
    assert [one for one in records if one["kind"] == "failure"] == []
    assert {one["stage"] for one in records} == {*BY_THE_SCRIPT, *IN_ONE_PROCESS}
    assert summarize(records, max_failures=1000, max_figures=10_000)
    checks = [one for one in records if one["kind"] == "check"]
    assert {one["kernel"] for one in checks} >= {
        "attention",
        "lora_add",
        "expand_norm",
        "quantized_linear",
        "grouped_linear",
        "layer with experts",
        "add_rms_norm",
        "swiglu",
        "geglu",
        "clamped_swiglu",
    }
    assert {one["kernel"] for one in checks} >= {
        "engine: float32, words",
        "engine: NF4",
        "engine: experts",
        "engine: waits",
        "waits",
    }
    assert all(one["passed"] for one in checks)
    assert written == ["log.txt", "report.md", "results.jsonl"]


def test_a_stage_that_runs_out_of_time_or_breaks_is_told_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    status = script.main(["--out", str(tmp_path), "--stages", "environment,kernel-times"])

    assert status == 1
    printed = capsys.readouterr().out
    assert "environment failed with exit status 1" in printed
    assert "kernel-times failed with exit status 1" in printed


def test_what_is_cut_off_keeps_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))

    status = script.main(["--out", str(tmp_path), "--stages", "environment", "--seconds", "1"])

    assert status == 1
    assert "cut off after 1 s" in capsys.readouterr().out


def test_worst_news_comes_first(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "kernel-times")
    recorder.figure("near its floor", 11.0, "us", floor=10.0)
    recorder.figure("far from its floor", 30.0, "us", floor=10.0)
    recorder.figure("misses its goal", 2.0, "ms", floor=1.9, goal=1.0)
    recorder.check("norm", "wide", error=0.5, limit=1.0, passed=True)
    recorder.check("norm", "narrow", error=float("nan"), limit=1.0, passed=False)
    recorder.failure("gate", "Traceback\n" + "line\n" * 40 + "ValueError: no such gate")

    report = summarize(read(tmp_path), max_failures=5, max_figures=2)

    order = [
        "ValueError: no such gate",
        "WRONG norm, narrow",
        "1 of 2",
        "misses its goal",
        "far from its floor",
        "1 more figures",
    ]
    places = [report.index(text) for text in order]
    assert places == sorted(places)
    assert report.count("line") < 13


def test_an_unknown_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--out", str(tmp_path), "--stages", "kernels-wrong"]) == 2
    assert "no stage kernels-wrong" in capsys.readouterr().err
