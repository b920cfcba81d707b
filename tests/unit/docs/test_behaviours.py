"""docs/lora.md names a test for every behaviour that tests can show, and only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
BENCHMARKS, PIPELINE = {27, 35}, {29, 31, 32, 36}
OWED = set(range(1, 37)) - BENCHMARKS - PIPELINE
NAME = r"test_behaviour_(\d\d)_\w+"


def table() -> dict[int, str]:
    """Return the last column of the table by the number in its first."""
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", (ROOT / "docs" / "lora.md").read_text(), re.MULTILINE)
    return {int(number): shown_by for number, shown_by in rows}


def numbered_tests() -> set[str]:
    """Return the names of all test functions that bear a behaviour's number."""
    sources = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    return {
        match[0] for source in sources for match in re.finditer(rf"(?<=^def ){NAME}", source, re.MULTILINE)
    }


def test_every_behaviour_owed_by_a_test_has_one() -> None:
    shown = {int(re.fullmatch(NAME, name)[1]) for name in numbered_tests()}  # type: ignore[index]  # all match

    assert sorted(OWED - shown) == []


def test_the_table_has_every_behaviour_and_names_tests_of_its_number() -> None:
    rows, existing = table(), numbered_tests()

    assert sorted(rows) == list(range(1, 37))
    for number in OWED:
        named = re.findall(rf"`({NAME})`", rows[number])
        assert named, number
        assert {int(digits) for _, digits in named} == {number}
        assert {name for name, _ in named} <= existing
    assert all("`python -m benchmarks." in rows[number] for number in BENCHMARKS)
    assert all("belongs to the pipeline" in rows[number] for number in PIPELINE)
