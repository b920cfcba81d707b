"""A process is known by its pid and start time together."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from lorayard.local.processes import ProcessIdentity, descendants, identify, works_in


def test_this_process_is_running_under_its_identity() -> None:
    me = identify(os.getpid())

    assert me is not None
    assert me.pid == os.getpid()
    assert me.is_running()


def test_the_same_pid_with_another_start_time_is_another_process() -> None:
    me = identify(os.getpid())
    assert me is not None

    impostor = replace(me, start_ticks=me.start_ticks + 1)

    assert not impostor.is_running()
    impostor.send(SIGKILL)  # and this test goes on


def test_a_pid_that_nobody_has_is_nobody() -> None:
    assert identify(2**22 + 1) is None
    assert not ProcessIdentity(2**22 + 1, 1).is_running()


def test_a_zombie_is_not_running() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    identity = identify(process.pid)
    assert identity is not None
    assert process.stdout is not None
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert not identity.is_running()
    process.communicate()


def test_descendants_are_found_across_generations_and_process_groups() -> None:
    inner = (
        "import subprocess, sys; subprocess.run(['/bin/sh', '-c', 'echo up; read x'], start_new_session=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        family = descendants(os.getpid())

        assert process.pid in [identity.pid for identity in family]
        assert [identity.pid for identity in descendants(process.pid)] != []
        process.communicate(b"\n")


def test_a_folder_is_worked_in_while_a_process_is_there(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    assert not works_in(folder)

    with subprocess.Popen(
        ["/bin/sh", "-c", "echo up; read x"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert works_in(folder)
        process.communicate(b"\n")
