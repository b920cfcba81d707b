"""Puts small processes where Lorayard's own stand, to test the stack by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

_PROCESSES = Path(__file__).with_name("processes")
_REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """The file in which the small processes write when they begin and end."""
    return tmp_path / "diary"


@pytest.fixture
def small_env(diary: Path) -> dict[str, str]:
    """The environment in which `python -m scheduler` and the others are the small processes."""
    # With a safe path Python does not look into the working directory, which holds the real ones.
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{_PROCESSES}:{_REPOSITORY}", "DIARY": str(diary)}
