"""A host that fails again and again is left alone for a while; the others do not notice."""

from __future__ import annotations

from workers.webhooks.hosts import FAILURES_TO_OPEN, FIRST_PAUSE_S, MAX_PAUSE_S, Hosts


def fail(hosts: Hosts, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        hosts.record("bad", ok=False, now=now)


def test_a_few_failures_pause_nothing() -> None:
    hosts = Hosts(per_host=2)

    fail(hosts, FAILURES_TO_OPEN - 1)

    assert hosts.pause_left_s("bad", 0.0) == 0.0


def test_a_failing_host_is_paused_and_the_others_are_not() -> None:
    hosts = Hosts(per_host=2)

    fail(hosts, FAILURES_TO_OPEN)

    assert hosts.pause_left_s("bad", 0.0) == FIRST_PAUSE_S
    assert hosts.unavailable(0.0) == ["bad"]
    assert hosts.pause_left_s("good", 0.0) == 0.0


def test_a_pause_ends_and_the_next_failure_doubles_it() -> None:
    hosts = Hosts(per_host=2)
    fail(hosts, FAILURES_TO_OPEN)
    assert hosts.unavailable(FIRST_PAUSE_S) == []

    fail(hosts, 1, now=FIRST_PAUSE_S)

    assert hosts.pause_left_s("bad", FIRST_PAUSE_S) == 2 * FIRST_PAUSE_S


def test_pauses_have_an_end() -> None:
    hosts = Hosts(per_host=2)

    fail(hosts, 100)

    assert hosts.pause_left_s("bad", 0.0) == MAX_PAUSE_S


def test_one_success_clears_the_record() -> None:
    hosts = Hosts(per_host=2)
    fail(hosts, FAILURES_TO_OPEN - 1)
    hosts.record("bad", ok=True, now=0.0)

    fail(hosts, FAILURES_TO_OPEN - 1)

    assert hosts.pause_left_s("bad", 0.0) == 0.0


def test_a_host_with_no_place_left_is_claimed_nothing_for() -> None:
    hosts = Hosts(per_host=2)

    hosts.begin("busy")
    assert hosts.unavailable(0.0) == []
    hosts.begin("busy")
    assert hosts.unavailable(0.0) == ["busy"]
    hosts.end("busy")
    assert hosts.unavailable(0.0) == []
