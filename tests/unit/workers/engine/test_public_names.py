"""What `from workers.engine import ...` offers, and what that costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers import engine


def test_every_public_name_is_listed_and_can_be_had() -> None:
    assert set(engine.__all__) <= set(dir(engine))
    assert {name: getattr(engine, name).__name__ for name in engine.__all__} == {
        name: name for name in engine.__all__
    }


def test_a_name_that_is_imported_late_is_the_class_itself() -> None:
    from workers.engine.serving import engine as room

    assert engine.LLMEngine is room.LLMEngine
    assert vars(engine)["LLMEngine"] is room.LLMEngine


def test_an_unknown_name_is_an_ordinary_import_error() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'Nothing' from 'workers\.engine'"):
        from workers.engine import Nothing  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(AttributeError, match=r"module 'workers\.engine' has no attribute 'Nothing'"):
        _ = engine.Nothing  # type: ignore[attr-defined]


def test_only_what_computes_loads_torch() -> None:
    program = """
import sys
from workers import engine
late = {name for name in engine.__all__ if name not in vars(engine)}
for name in set(engine.__all__) - late:
    getattr(engine, name)
print("torch" in sys.modules, *sorted(late))
"""

    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert told.stdout.split() == ["False", "EngineStats", "LLMEngine"]
