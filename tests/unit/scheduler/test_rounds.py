"""Which items explain a failure."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.rounds import culprits_among


def test_culprits_are_found_by_halving() -> None:
    asked: list[int] = []

    def fails(some: Sequence[int]) -> bool:
        asked.append(len(some))
        return bool({3, 70} & set(some))

    assert culprits_among(range(100), fails, 8) == [3, 70]
    assert len(asked) < 40


def test_items_that_fail_only_together_explain_nothing_and_no_more_are_sought_than_asked_for() -> None:
    assert culprits_among([1, 2, 3, 4], lambda some: len(some) > 1, 8) == []
    assert len(culprits_among(range(1000), lambda some: True, 8)) == 8
    assert culprits_among([], lambda some: True, 8) == []
