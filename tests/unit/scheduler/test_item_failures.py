"""Three failures at one item put it aside; the others have their turn meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from redis.exceptions import ConnectionError as RedisAway

from scheduler.item_failures import MAX_PLACES, REST_S, ItemFailures


class Clock:
    """A clock that only tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Fails at what is bad, and remembers what went through."""

    def __init__(self, *bad: str) -> None:
        self.bad = set(bad)
        self.done: list[str] = []

    def __call__(self, items: Sequence[str]) -> None:
        if found := self.bad.intersection(items):
            raise KeyError(min(found))
        self.done += items


def test_the_third_failure_puts_an_item_aside_for_a_minute() -> None:
    clock = Clock()
    items, aside = ItemFailures(clock), []
    work = Work("b")
    for _ in range(4):
        items.attempt_all("part", ["a", "b", "c"], str, work, lambda item, error: aside.append((item, error)))

    assert work.done == ["a", "c"] * 4
    assert [(item, type(error)) for item, error in aside] == [("b", KeyError)]
    assert items.is_resting("part", "b")
    assert not items.is_resting("other part", "b")
    assert items.num_put_aside == {"part": 1}

    clock.now = REST_S
    assert not items.is_resting("part", "b")


def test_an_item_that_goes_through_is_forgiven() -> None:
    items = ItemFailures(Clock())
    work = Work("a")
    for _ in range(3):
        for _ in range(2):
            assert not items.attempt("part", "a", lambda: work(["a"]))
        work.bad.clear()
        assert items.attempt("part", "a", lambda: work(["a"]))
        work.bad.add("a")

    assert not items.is_resting("part", "a")


def test_an_outage_is_raised_and_counts_for_nothing() -> None:
    items = ItemFailures(Clock())

    def fail(_items: Sequence[str] = ()) -> None:
        raise RedisAway("away")

    for _ in range(4):
        with pytest.raises(RedisAway):
            items.attempt("part", "a", fail)
        with pytest.raises(RedisAway):
            items.attempt_all("part", ["a", "b"], str, fail)

    assert not items.is_resting("part", "a")


def test_an_item_that_cannot_be_put_aside_rests_all_the_same() -> None:
    items = ItemFailures(Clock())

    def put_aside(_item: str, _error: Exception) -> None:
        raise RedisAway("away")

    for _ in range(2):
        items.attempt_all("part", ["a"], str, Work("a"), put_aside)
    with pytest.raises(RedisAway):
        items.attempt_all("part", ["a"], str, Work("a"), put_aside)

    assert items.is_resting("part", "a")


def test_places_are_bounded() -> None:
    items = ItemFailures(Clock())
    for number in range(MAX_PLACES + 5):
        items._failures[("part", str(number))] = 1  # type: ignore[index]
    items.failed("part", "last", KeyError("x"))

    assert len(items._failures) == MAX_PLACES
