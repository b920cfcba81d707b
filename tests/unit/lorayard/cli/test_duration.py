"""Durations as people write them."""

from __future__ import annotations

import pytest
import typer

from lorayard.cli.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800), (" 1.5h ", 5_400)]
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0s", "1w", "1h30m", "nan", "9" * 30 + "d"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"is not a duration: .* e.g. 24h"):
        parse_duration(text)
