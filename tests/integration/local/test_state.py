"""A state directory has one holder, who ends what a dead one left and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorayard.local.child import Child, ChildSpec
from lorayard.local.errors import LocalStackError, StateDirectoryBusy
from lorayard.local.processes import identify
from lorayard.local.state import StateDirectory
from tests.polling import eventually


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def write_record(state: StateDirectory, process: subprocess.Popen[bytes], **changes: object) -> None:
    identity = identify(process.pid)
    assert identity is not None
    row: dict[str, object] = {"name": "old", "pid": process.pid, "start_ticks": identity.start_ticks}
    row["stop_signal"] = 15
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record: dict[str, object] = {"boot_id": boot_id, "processes": [row]}
    record.update({name: value for name, value in changes.items() if name in record})
    row.update({name: value for name, value in changes.items() if name in row})
    (state.path / "processes.json").write_text(json.dumps(record))


def test_a_held_directory_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "state")

    with pytest.raises(StateDirectoryBusy, match=rf"pid {os.getpid()} \(.*LORAYARD_STATE_DIR"):
        StateDirectory(tmp_path / "state")

    first.release()
    StateDirectory(tmp_path / "state").release()


def test_a_recorded_process_that_still_runs_is_ended(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    state = StateDirectory(tmp_path / "state")
    write_record(state, bystander)
    state.release()

    following = StateDirectory(tmp_path / "state")

    assert [record.identity.pid for record in following.leftovers] == [bystander.pid]
    eventually(lambda: bystander.poll() is not None, what="the leftover's end")
    following.release()


@pytest.mark.parametrize("changes", [{"start_ticks": 1}, {"boot_id": "another boot"}], ids=["pid", "boot"])
def test_a_process_that_merely_has_a_recorded_pid_is_left_alone(
    tmp_path: Path, bystander: subprocess.Popen[bytes], changes: dict[str, object]
) -> None:
    state = StateDirectory(tmp_path / "state")
    write_record(state, bystander, **changes)
    state.release()

    following = StateDirectory(tmp_path / "state")

    assert following.leftovers == []
    assert bystander.poll() is None
    following.release()


def test_what_runs_is_written_down_and_what_ended_is_struck_off(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    argv = (sys.executable, "-c", "import time; time.sleep(600)")
    child = Child(ChildSpec("sleeper", argv, state.log_path("sleeper"), dict(os.environ)))

    state.record([child])
    written = json.loads((state.path / "processes.json").read_text())["processes"]
    child.kill()
    state.record([])

    assert [(row["name"], row["pid"], row["start_ticks"]) for row in written] == [
        ("sleeper", child.pid, child.identity.start_ticks)
    ]
    assert json.loads((state.path / "processes.json").read_text())["processes"] == []
    state.release()


def test_an_unreadable_record_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    (state.path / "processes.json").write_text("{")
    state.release()

    with pytest.raises(LocalStackError, match=r"processes\.json is not a record"):
        StateDirectory(tmp_path / "state")


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(
        LocalStackError, match=r"nothing was started .*Not a directory.*file/state can be written"
    ):
        StateDirectory(tmp_path / "file" / "state")
