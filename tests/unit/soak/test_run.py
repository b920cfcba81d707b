"""An adapter is replaced each minute, whatever else goes on."""

from __future__ import annotations

import pytest

from tests.soak.run import Replacements


def test_an_adapter_is_replaced_each_minute_while_it_is_calm() -> None:
    replacements = Replacements(0.0)

    due = [now for now in range(600) if _replaces(replacements, float(now), is_calm=True)]

    assert due == [60 * number for number in range(1, 10)]


@pytest.mark.parametrize("calm_at", [70.0, 119.0, 500.0])
def test_calm_is_waited_for_a_minute_at_most(calm_at: float) -> None:
    replacements = Replacements(0.0)

    due = [now for now in range(600) if _replaces(replacements, float(now), is_calm=now >= calm_at)]

    assert due[0] == min(calm_at, 120.0)
    assert len(due) >= 8


def _replaces(replacements: Replacements, now_s: float, *, is_calm: bool) -> bool:
    if not replacements.is_due(now_s, is_calm=is_calm):
        return False
    replacements.count(now_s)
    return True
