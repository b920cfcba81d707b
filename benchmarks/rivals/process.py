"""The tournament's end of a measured system: starts its process, asks for rounds, stops it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

from benchmarks.rivals.protocol import MARK, Job

_STOP_WITHIN_S = 20.0
_ROOT = Path(__file__).parents[2]


class RivalError(Exception):
    """A system that could not be started or measured."""


class Round(NamedTuple):
    """One measured round."""

    seconds: float
    num_tokens: int
    first_tokens: list[int]
    foreign_share: float  # of all cores' time, spent by processes that are not this system


class RivalProcess:
    """One running system; entering starts it and waits until it is ready."""

    def __init__(
        self, module: str, job: Job, *, python: str, environment: Mapping[str, str], label: str
    ) -> None:
        self._label = label
        self._command = [python, "-m", module, job.to_json()]
        threads = {"OMP_NUM_THREADS": str(job.num_threads), "TOKENIZERS_PARALLELISM": "false"}
        self._environment = {**os.environ, **threads, **environment, "PYTHONPATH": str(_ROOT)}
        # Kept open as long as the child lives: it is the child's standard error.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.version = ""

    def __enter__(self) -> RivalProcess:
        self._child = subprocess.Popen(
            self._command,
            cwd=_ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.version = self._receive()["version"]
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, round_number: int, num_new_tokens: int) -> Round:
        """Let the system serve one round of its workload."""
        before = _CpuTimes.of(self._child.pid)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"round": round_number, "num_new_tokens": num_new_tokens}) + "\n")
        self._child.stdin.flush()
        answer = self._receive()
        foreign_share = _CpuTimes.of(self._child.pid).foreign_share_since(before)
        return Round(answer["seconds"], answer["num_tokens"], answer["first"], foreign_share)

    def _receive(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            # Some libraries print progress without a line end before the mark.
            _, mark, message = line.partition(MARK)
            if mark:
                return dict(json.loads(message))
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-25:])
        raise RivalError(f"{self._label} ended before it answered; its last words:\n{tail}")

    def _stop(self) -> None:
        assert self._child.stdin is not None
        family = psutil.Process(self._child.pid).children(recursive=True)
        self._child.stdin.close()
        try:
            self._child.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for orphan in psutil.wait_procs(family, timeout=_STOP_WITHIN_S)[1]:
            orphan.kill()
        self._log.close()


class _CpuTimes(NamedTuple):
    """Core seconds since boot: of the whole machine, of it those not idle, and of one process family."""

    total_s: float
    busy_s: float
    family_s: float

    @classmethod
    def of(cls, pid: int) -> _CpuTimes:
        machine = psutil.cpu_times()
        parent = psutil.Process(pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        total_s = sum(machine) - machine.guest - machine.guest_nice  # both are part of user time already
        return cls(
            total_s, total_s - machine.idle - machine.iowait, sum(one.user + one.system for one in times)
        )

    def foreign_share_since(self, before: _CpuTimes) -> float:
        foreign_s = (self.busy_s - before.busy_s) - (self.family_s - before.family_s)
        return max(0.0, foreign_s / max(self.total_s - before.total_s, 1e-9))
