"""Each root name is ours: nothing installed may stand in front of it."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["lorayard", "scheduler", "workers", "kernels", "db"])
def test_a_root_name_belongs_to_this_repository(name: str) -> None:
    spec = find_spec(name)

    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)
    assert set(packages_distributions().get(name, ["lorayard"])) == {"lorayard"}
