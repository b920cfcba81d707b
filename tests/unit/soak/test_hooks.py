"""Hook points name functions that exist, and kill exactly one process each time they are armed."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.soak.hooks import MISSING_NAME, POINTS, Armoury, HookPoint, wrap

ROOT = Path(__file__).parents[3]
STARTUP = ROOT / "tests" / "soak" / "startup"
POINT = HookPoint("point", "relay", "module", "Thing.act", "before")


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_point_names_a_function(point: HookPoint) -> None:
    owner_name, _, name = point.function.partition(".")
    owner = getattr(importlib.import_module(point.module), owner_name)

    assert inspect.isfunction(getattr(owner, name))


@pytest.mark.parametrize(("when", "order"), [("before", "strike act"), ("after", "act strike")])
def test_a_function_is_struck_before_or_after_its_work(when: Any, order: str) -> None:
    done: list[str] = []
    module = _module(done)

    wrap(module, HookPoint("point", "relay", "module", "Thing.act", when), lambda: done.append("strike"))

    assert module.Thing().act(3) == 3
    assert done == order.split()


def test_a_missing_name_is_refused_with_its_point() -> None:
    with pytest.raises(LookupError, match=r"hook point 'point': module has no Thing\.act any more"):
        wrap(ModuleType("module"), POINT, lambda: None)


def test_an_armed_point_kills_the_process_that_comes_to_it_and_no_other(tmp_path: Path) -> None:
    armoury = Armoury(tmp_path)
    armoury.arm("append-before-receipt")
    append = (
        "from lorayard.client.guard import SubmitGuard\n"
        "SubmitGuard.__init__ = lambda self: None\n"
        "SubmitGuard._script = lambda self, keys, args: [[]]\n"
        "from lorayard.contract.keys import PoolKeys\n"
        "SubmitGuard().append(PoolKeys('p'), [])\n"
    )

    codes = [_run(append, tmp_path).returncode for _ in range(2)]

    assert codes == [-9, 0]
    (hit,) = [json.loads(line) for line in armoury.log.read_text().splitlines()]
    assert (hit["point"], hit["target"], hit["kind"]) == ("append-before-receipt", "producer", "kill")
    assert not armoury.is_armed("append-before-receipt")


def test_a_process_in_which_a_name_is_missing_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import tests.soak.hooks as hooks, sys\n"
        "sys.meta_path.insert(0, hooks._Finder(hooks.Path('.'), "
        "[hooks.HookPoint('gone', 'relay', 'lorayard.webhooks', 'Nobody.acts', 'before')]))\n"
        "import lorayard.webhooks\n"
    )

    ended = _run(code, tmp_path)

    assert ended.returncode == MISSING_NAME
    assert b"soak: hook point 'gone': lorayard.webhooks has no Nobody.acts any more" in ended.stderr


def test_fencing_can_be_switched_off_in_this_release() -> None:
    """The wrapping finds every piece of SQL that it replaces, and every method."""
    from tests.soak.hooks import _UNFENCED

    for name, unfence in _UNFENCED.items():
        module = importlib.import_module(name)
        copy = ModuleType(name)
        copy.__dict__.update(module.__dict__)
        for owner in ("FinishRepository", "LeaseKeeper"):
            if hasattr(copy, owner):
                setattr(copy, owner, type(owner, (getattr(copy, owner),), {}))

        unfence(copy, Path("/nowhere"))


def _module(done: list[str]) -> Any:
    class Thing:
        def act(self, value: int) -> int:
            done.append("act")
            return value

    module = ModuleType("module")
    module.Thing = Thing  # type: ignore[attr-defined]
    return module


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join(map(str, (STARTUP, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "SOAK_HOOKS": str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
