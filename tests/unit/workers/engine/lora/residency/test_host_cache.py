from __future__ import annotations

import pytest
import torch

from kernels.lora.tables import PackedLoRA
from workers.engine.lora.files.base import PackedKey
from workers.engine.lora.residency.host_cache import WANTED_S, HostCache
from workers.engine.lora.tables.adapter_weights import AdapterWeights


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def busy() -> set[str]:
    return set()


@pytest.fixture
def cache(busy: set[str], clock: Clock) -> HostCache:
    return HostCache(2, is_busy=busy.__contains__, clock=clock)


def _weights(revision: str) -> AdapterWeights:
    return AdapterWeights(revision, 8, {})


def test_the_least_recently_used_leaves(cache: HostCache) -> None:
    assert cache.put(_weights("a")) == []
    assert cache.put(_weights("b")) == []
    cache.use("b")
    cache.use("a")

    assert cache.put(_weights("c")) == ["b"]
    assert list(cache) == ["a", "c"]


def test_busy_ones_stay_and_a_newcomer_finds_no_room(cache: HostCache, busy: set[str]) -> None:
    for name in "ab":
        cache.put(_weights(name))
        cache.use(name)
    busy |= {"a", "b"}

    assert not cache.has_room_for(1)
    assert cache.put(_weights("c")) is None
    busy.remove("b")
    assert cache.has_room_for(1)
    assert not cache.has_room_for(2)
    assert cache.put(_weights("c")) == ["b"]


def test_what_was_loaded_for_a_waiting_request_is_safe_for_a_while(cache: HostCache, clock: Clock) -> None:
    cache.put(_weights("a"))
    cache.put(_weights("b"))

    assert cache.put(_weights("c")) is None
    assert cache.can_put(_weights("c"), even_wanted=True)
    clock.now += WANTED_S
    assert cache.put(_weights("c")) == ["a"]


def test_wanting_renews_the_protection_and_using_ends_it(cache: HostCache, clock: Clock) -> None:
    cache.put(_weights("a"))
    cache.put(_weights("b"))
    clock.now += WANTED_S
    cache.want("a")
    cache.want("b")
    cache.use("b")

    assert cache.put(_weights("c")) == ["b"]


def test_an_explicit_demand_passes_over_wishes_but_not_over_busy_ones(
    cache: HostCache, busy: set[str]
) -> None:
    cache.put(_weights("a"))
    cache.put(_weights("b"))
    busy.add("a")

    assert cache.put(_weights("c"), even_wanted=True) == ["b"]
    busy.add("c")
    assert cache.put(_weights("d"), even_wanted=True) is None


def _sized(revision: str, num_bytes: int) -> AdapterWeights:
    packed = PackedLoRA(torch.zeros(1, num_bytes // 4), ())
    return AdapterWeights(revision, 8, {PackedKey(0, "o"): packed})


def test_bytes_bound_what_is_kept_and_as_many_leave_as_needed(busy: set[str], clock: Clock) -> None:
    cache = HostCache(9, max_bytes=100, is_busy=busy.__contains__, clock=clock)
    for name in "abc":
        cache.put(_sized(name, 32))
        cache.use(name)
    assert cache.num_bytes == 96
    busy.add("a")

    assert cache.put(_sized("d", 64)) == ["b", "c"]
    assert cache.put(_sized("e", 80), even_wanted=True) is None
    assert cache.num_bytes == 96
    cache.drop("d")
    assert cache.num_bytes == 32


def test_hints_decide_who_leaves_before_use_does(busy: set[str], clock: Clock) -> None:
    cache = HostCache(5, is_busy=busy.__contains__, clock=clock)
    for name in "abcde":
        cache.put(_weights(name))
        cache.use(name)
    cache.expect("a", 1)
    cache.expect("b", 0)
    cache.expend("d")

    left = [cache.put(_weights(name), even_wanted=True) for name in "123"]
    assert left == [["d"], ["c"], ["e"]]
    for name in "123":
        busy.add(name)
    assert cache.put(_weights("4")) == ["a"]


def test_what_comes_for_a_hint_takes_no_place_that_is_needed_sooner(cache: HostCache) -> None:
    for turn, name in enumerate("ab"):
        cache.put(_weights(name))
        cache.use(name)
        cache.expect(name, turn)

    assert not cache.has_room_for(1, turn=2)
    assert cache.has_room_for(1, turn=0)
    assert cache.has_room_for(1)
    cache.expend("a")
    cache.use("a")
    assert not cache.has_room_for(1, turn=2)
    cache.expect_nothing()
    assert cache.has_room_for(1, turn=2)
