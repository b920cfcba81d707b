"""What a Redis tells of itself decides whether it may be given jobs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lorayard.transport.server_check import judge

RIGHT = {"redis_version": "6.2.0", "redis_mode": "standalone", "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    ("told", "refusal"),
    [
        ({"redis_version": "6.0.16"}, "it is Redis 6.0.16: upgrade it to 6.2 or newer"),
        ({"redis_version": "5.0.7"}, "it is Redis 5.0.7"),
        ({"redis_mode": "sentinel"}, "it is a Redis Sentinel"),
        ({"redis_mode": "cluster", "cluster_enabled": 1}, "name a single server"),
        ({"cluster_enabled": 1}, "name a single server"),
        ({"maxmemory_policy": "allkeys-lru"}, "may evict accepted jobs .*allkeys-lru.*: set .* noeviction"),
        ({"maxmemory_policy": "allkeys-random"}, "allkeys-random"),
    ],
)
def test_a_server_that_cannot_keep_jobs_is_refused_with_the_remedy(
    told: dict[str, Any], refusal: str
) -> None:
    found = judge(RIGHT | told)

    assert re.search(refusal, found.refusal or "")


@pytest.mark.parametrize("told", [{}, {"redis_version": "8.2.1"}, {"redis_version": "255.255.255"}])
def test_a_server_that_can_is_taken_and_one_that_tells_nothing_too(told: dict[str, Any]) -> None:
    assert judge(RIGHT | told) == (None, None)
    assert judge({}) == (None, None)


def test_one_that_may_evict_what_clients_can_look_up_is_only_warned_of() -> None:
    found = judge(RIGHT | {"maxmemory_policy": "volatile-ttl"})

    assert found.refusal is None
    assert found.warning is not None
    assert "volatile-ttl" in found.warning
