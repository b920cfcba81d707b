"""A process that was told nonsense says so in one line and ends with a status of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from lorayard.process.environment import (
    BAD_ENVIRONMENT,
    UNUSED_EXTRAS,
    ServiceSettings,
    readable_settings,
    withdraw_readiness,
)

_RUN = """
import atexit, runpy, sys
atexit.register(lambda: print([one for one in {extras} if sys.modules.get(one) is not None]))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Runs a module as `python -m` does, and tells which of some others it has imported."""


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("scheduler", "LORAYARD_MODEL"),
        ("workers", "LORAYARD_MODEL"),
        ("workers.webhooks", "LORAYARD_DATABASE_URL"),
    ],
)
def test_a_missing_variable_is_one_line_and_an_earlier_run_is_not_taken_for_ready(
    module: str, missing: str, tmp_path: Path
) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("LORAYARD_")}
    ready_file = tmp_path / "ready"
    ready_file.touch()

    run = subprocess.run(
        [sys.executable, "-c", _RUN.format(extras=(*UNUSED_EXTRAS, "pygments")), module],
        env=bare | {"LORAYARD_READY_FILE": str(ready_file)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert not ready_file.exists()
    assert run.returncode == BAD_ENVIRONMENT
    assert missing in run.stderr
    assert "not set" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("main", "call"),
    [
        ("scheduler/__main__.py", "withdraw_readiness()"),
        ("workers/__main__.py", "withdraw_readiness()"),
        ("workers/webhooks/__main__.py", "withdraw_readiness()"),
        ("scheduler/__main__.py", "leave_out_extras()"),
        ("workers/__main__.py", "leave_out_extras()"),
        ("workers/webhooks/__main__.py", "leave_out_extras()"),
        ("lorayard/server/flower.py", "leave_out_extras()"),
        ("scheduler/__main__.py", "require_own_packages('scheduler')"),
        ("workers/__main__.py", "require_own_packages('workers')"),
        ("workers/webhooks/__main__.py", "require_own_packages('workers.webhooks')"),
    ],
)
def test_a_service_begins_with_what_must_come_before_its_imports(main: str, call: str) -> None:
    statements = ast.parse((Path(__file__).parents[4] / main).read_text()).body
    begins = next(i for i, one in enumerate(statements) if call in ast.unparse(one))

    before = {ast.unparse(one) for one in statements[:begins] if "import" in ast.unparse(one)}
    ours = {line for line in before if not line.startswith("import ")} - {
        "from __future__ import annotations"
    }
    rooms = {line.split()[1].removeprefix("lorayard.process.") for line in ours}
    assert rooms <= {"environment", "garbage", "packages"}


def test_a_ready_file_that_cannot_be_removed_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORAYARD_READY_FILE", str(tmp_path))  # a folder

    with pytest.raises(SystemExit) as ended:
        withdraw_readiness()

    assert ended.value.code == BAD_ENVIRONMENT
    assert f"LORAYARD_READY_FILE={tmp_path} of an earlier run cannot be removed" in capsys.readouterr().err


def test_empty_variables_of_all_services_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAYARD_READY_FILE", "LORAYARD_HOLD_REFUSED"):
        monkeypatch.setenv(name, "")

    withdraw_readiness()

    assert not ServiceSettings().hold_refused


def test_a_service_that_is_refused_in_a_container_stays_until_it_is_stopped() -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("LORAYARD_")}
    with subprocess.Popen(
        [sys.executable, "-m", "workers.webhooks"],
        env=bare | {"LORAYARD_HOLD_REFUSED": "true"},
        stderr=subprocess.PIPE,
        text=True,
    ) as held:
        assert held.stderr is not None
        said = [held.stderr.readline(), held.stderr.readline()]
        assert held.poll() is None
        held.terminate()

        assert held.wait(60) == BAD_ENVIRONMENT
    assert "LORAYARD_DATABASE_URL" in said[0]
    assert "held until stopped" in said[1]


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class SampleSettings(BaseSettings):
        number: int = 0

    monkeypatch.setenv("NUMBER", "many")

    with pytest.raises(SystemExit) as ended, readable_settings("sample"):
        SampleSettings()

    assert ended.value.code == BAD_ENVIRONMENT
    assert "NUMBER='many'" in capsys.readouterr().err
