"""A simulated worker's adapters obey hints before recency, and what jobs want stays."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from benchmarks.policies.residency import Residency
from tests.unit.benchmarks.policies.making import TOY, adapter, pool


class Clock:
    """Calls what was scheduled, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []

    def at(self, when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (when, len(self._heap), action))

    def run(self) -> None:
        while self._heap:
            self.now, _, action = heapq.heappop(self._heap)
            action(self.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def warm(clock: Clock, host: str, slots: str) -> Residency:
    residency = Residency(pool(slots=len(slots), host_adapters=len(host)), TOY, clock.at, lambda _: None)
    residency.warm(map(adapter, host), map(adapter, slots))
    return residency


def test_the_least_recently_used_leaves(clock: Clock) -> None:
    residency = warm(clock, "abc", "ab")

    residency.use(adapter("a"), 0.0)
    residency.release(adapter("a"))
    residency.use(adapter("d"), 0.0)
    clock.run()

    assert list(residency.host) == ["c", "a", "d"]
    assert list(residency.slots) == ["a", "d"]


def test_what_a_hint_gives_up_leaves_first(clock: Clock) -> None:
    residency = warm(clock, "abc", "ab")

    residency.follow([], ["c"], 0.0)
    residency.use(adapter("d"), 0.0)
    clock.run()

    assert sorted(residency.host) == ["a", "b", "d"]


def test_a_hint_loads_into_places_that_no_earlier_one_of_its_adapters_needs(clock: Clock) -> None:
    residency = warm(clock, "abc", "a")

    residency.follow([adapter(name) for name in "bdace"], [], 0.0)
    clock.run()

    # d takes the place of c, which is needed later; e finds none that is needed later still.
    assert sorted(residency.host) == ["a", "b", "d"]
    assert clock.now == 10


def test_what_a_job_waits_for_is_loaded_before_what_is_hinted_at(clock: Clock) -> None:
    residency = warm(clock, "abc", "a")

    residency.follow([adapter("d"), adapter("e")], [], 0.0)
    residency.use(adapter("f"), 0.0)
    clock.run()

    assert list(residency.host) == ["d", "f", "e"]


def test_what_was_loaded_on_a_hint_is_let_go_if_jobs_want_all_the_rest(clock: Clock) -> None:
    residency = warm(clock, "ab", "ab")

    residency.follow([adapter("c")], [], 0.0)
    residency.use(adapter("a"), 1.0)
    residency.use(adapter("b"), 1.0)
    clock.run()

    assert sorted(residency.host) == ["a", "b"]
    assert residency.store_bytes == adapter("c").size


def test_what_leaves_the_host_while_it_is_copied_gets_no_slot(clock: Clock) -> None:
    residency = warm(clock, "ab", "a")

    residency.use(adapter("c"), 0.0)
    residency.release(adapter("c"))
    residency.use(adapter("b"), 9.5)  # copied until 11.5
    residency.release(adapter("b"))
    residency.follow([], ["b"], 9.5)
    clock.run()

    assert list(residency.host) == ["a", "c"]
    assert list(residency.slots) == []


def test_what_jobs_want_stays(clock: Clock) -> None:
    residency = warm(clock, "ab", "ab")

    residency.use(adapter("a"), 0.0)
    residency.follow([], ["a"], 0.0)
    residency.use(adapter("c"), 0.0)
    clock.run()

    assert sorted(residency.slots) == ["a", "c"]
