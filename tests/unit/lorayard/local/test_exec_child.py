"""A child whose parent is gone before it is bound to it does not start its program."""

from __future__ import annotations

import os
import subprocess
import sys
from signal import SIGKILL

from lorayard.local import child


def run(parent_pid: int, *program: str, told: str = "\n") -> subprocess.CompletedProcess[str]:
    bonds = [str(parent_pid), str(int(SIGKILL)), "-1", "-1"]
    argv = [sys.executable, "-I", "-S", str(child._EXEC_CHILD), *bonds, *program]
    return subprocess.run(argv, input=told, capture_output=True, text=True, check=False)


def test_it_becomes_the_program_of_a_living_parent() -> None:
    assert run(os.getpid(), "/bin/echo", "here").stdout == "here\n"


def test_it_starts_nothing_for_a_parent_that_is_gone() -> None:
    done = run(2**22 + 1, "/bin/echo", "here")

    assert done.stdout == ""
    assert done.returncode == 1
    assert "died before /bin/echo was started" in done.stderr


def test_it_starts_nothing_that_its_parent_has_not_written_down() -> None:
    done = run(os.getpid(), "/bin/echo", "here", told="")

    assert (done.stdout, done.returncode) == ("", 1)
    assert "/bin/echo was not started: the parent process ended or gave up before" in done.stderr


def test_a_program_reads_nothing_of_its_parent() -> None:
    assert run(os.getpid(), "/bin/cat", told="\nmore").stdout == ""


def test_a_program_that_cannot_be_run_is_named() -> None:
    assert "cannot run /no/such: " in run(os.getpid(), "/no/such").stderr
