"""`up` keeps a stack running until it is told to stop, and starts again what died."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorayard.local import LocalStackError
from lorayard.local import up as run_up
from lorayard.local.processes import ProcessIdentity
from lorayard.local.state import StateDirectory
from tests.polling import eventually
from tests.unit.lorayard.process.signal_bursts import send_burst

_MAIN = Path(__file__).with_name("up_main.py")


@pytest.fixture
def state_dir(new_initialised_dir: Callable[[], Path]) -> Path:
    """A state directory that has been used before: `test_servers.py` begins with none."""
    return new_initialised_dir()


class Up:
    """One `up` in a process of its own."""

    def __init__(self, state_dir: Path, small_env: dict[str, str], model: Path, **variables: str) -> None:
        own = {
            "LORAYARD_STATE_DIR": str(state_dir),
            "LORAYARD_WORKERS": "1",
            "LORAYARD_MODEL": str(model),
            "COLUMNS": "200",
            **variables,
        }
        self._state_dir = state_dir
        self.process = subprocess.Popen(
            [sys.executable, str(_MAIN), json.dumps(small_env)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **own},
        )

    def running(self) -> dict[str, ProcessIdentity]:
        record = self._state_dir / "processes.json"
        rows = json.loads(record.read_text())["processes"] if record.exists() else []
        identities = {row["name"]: ProcessIdentity(row["pid"], row["start_ticks"]) for row in rows}
        return {name: identity for name, identity in identities.items() if identity.is_running()}

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        read = ""
        for line in self.process.stdout:
            read += line
            if text in line:
                return read
        raise AssertionError(f"up ended with {self.process.wait()} and never said {text!r}:\n{read}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def up(
    state_dir: Path, small_env: dict[str, str], model: Path, request: pytest.FixtureRequest
) -> Iterator[Up]:
    """A started `up`; a test may give its small processes more variables as the fixture's parameter."""
    up = Up(state_dir, {**small_env, **getattr(request, "param", {})}, model)
    yield up
    up.process.kill()
    up.process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_order(up: Up, diary: Path, signum: signal.Signals) -> None:
    up.read_until("Ctrl-C stops it")
    family = up.running()
    assert sorted(family) == ["postgres", "redis", "relay", "scheduler", "worker-1"]

    up.process.send_signal(signum)
    said, _ = up.process.communicate(timeout=30)

    assert up.process.returncode == 0, said
    assert not any(identity.is_running() for identity in family.values())
    assert diary.read_text().splitlines()[-3:] == ["worker-1 ended", "relay ended", "scheduler ended"]


def test_a_worker_gets_the_card_that_nvidia_smi_lists(
    state_dir: Path, small_env: dict[str, str], model: Path, tmp_path: Path, diary: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-7)'\n")
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    up = Up(state_dir, small_env, model, LORAYARD_DEVICE="cuda", PATH=path)
    try:
        said = up.read_until("Ctrl-C stops it")
    finally:
        up.process.kill()
        up.process.communicate()

    worker = json.loads(diary.with_name("worker-1.json").read_text())
    assert (worker["LORAYARD_DEVICE"], worker["CUDA_VISIBLE_DEVICES"]) == ("cuda", "GPU-7")
    assert re.search(r"worker-1\W+\d+\W+GPU-7", said)


def test_a_burst_of_signals_is_one_wish(up: Up, diary: Path) -> None:
    up.read_until("Ctrl-C stops it")
    family = up.running()

    send_burst(up.process)
    said, _ = up.process.communicate(timeout=30)

    assert up.process.returncode == 0, said
    assert not any(identity.is_running() for identity in family.values())
    assert diary.read_text().splitlines()[-3:] == ["worker-1 ended", "relay ended", "scheduler ended"]


def test_a_signal_during_the_start_stops_it_too(up: Up) -> None:
    family = eventually(up.running, 60.0, "the first process")

    up.process.send_signal(signal.SIGTERM)
    said, _ = up.process.communicate(timeout=30)

    assert up.process.returncode == 0, said
    assert not any(identity.is_running() for identity in (family | up.running()).values())


def test_it_shows_where_everything_is_and_leaves_a_private_file_for_clients(up: Up, state_dir: Path) -> None:
    said = up.read_until("Ctrl-C stops it")

    client_env = state_dir / "client.env"
    assert f"source {client_env}" in said
    assert str(up.running()["worker-1"].pid) in said
    assert client_env.stat().st_mode & 0o777 == 0o600
    assert "export LORAYARD_REDIS_URL=redis://" in client_env.read_text()


def test_a_worker_that_dies_is_started_again(up: Up) -> None:
    up.read_until("Ctrl-C stops it")
    before = up.running()["worker-1"]

    before.send(signal.SIGKILL)
    said = up.read_until("worker-1 starts again")

    assert "worker-1 died" in said
    eventually(lambda: up.running().get("worker-1", before) != before, what="the new worker")


@pytest.mark.parametrize("up", [{"MISTOLD": "worker-1"}], indirect=True, ids=["mistold"])
def test_a_worker_whose_configuration_is_wrong_is_not_started_for_ever(up: Up, diary: Path) -> None:
    up.read_until("Ctrl-C stops it")

    up.running()["worker-1"].send(signal.SIGKILL)
    said = up.read_until("worker-1 is not started again: its configuration is wrong")
    up.running()["relay"].send(signal.SIGKILL)
    said += up.read_until("relay starts again")
    eventually(lambda: "relay" in up.running(), what="the relay")

    assert "ended with status 2" in said
    assert "worker-1" not in up.running()


def test_it_ends_with_an_error_when_a_server_dies(up: Up) -> None:
    up.read_until("Ctrl-C stops it")
    family = up.running()

    family["redis"].send(signal.SIGKILL)
    said, _ = up.process.communicate(timeout=30)

    assert up.process.returncode == 1
    assert "redis died" in said
    assert not any(identity.is_running() for identity in family.values())


@pytest.mark.parametrize("up", [{"DEAF": "worker-1"}], indirect=True, ids=["deaf"])
def test_a_second_signal_ends_a_worker_that_will_not_finish(up: Up) -> None:
    up.read_until("Ctrl-C stops it")
    family = up.running()
    began = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGINT)  # within a second of the first: the same wish
    eventually(lambda: time.monotonic() - began > 1.2)
    assert family["worker-1"].is_running()

    up.process.send_signal(signal.SIGINT)
    said, _ = up.process.communicate(timeout=10)

    assert up.process.returncode == 0, said
    assert not any(identity.is_running() for identity in family.values())


def test_a_start_that_is_refused_says_why_and_stops_nothing(
    state_dir: Path, small_env: dict[str, str], model: Path
) -> None:
    held = StateDirectory(state_dir)
    up = Up(state_dir, small_env, model)

    said, _ = up.process.communicate(timeout=60)
    held.release()

    assert up.process.returncode == 1
    assert f"in use by pid {os.getpid()}" in said
    assert "stopped" not in said


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "set LORAYARD_MODEL"), ("/no/such/model", "/no/such/model holds no config.json")],
)
def test_a_missing_base_model_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("LORAYARD_MODEL", value)

    with pytest.raises(LocalStackError, match=message):
        run_up()
