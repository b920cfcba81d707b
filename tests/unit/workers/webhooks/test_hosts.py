"""A receiver that fails again and again is left alone for a while; the others do not notice."""

from __future__ import annotations

from workers.webhooks.hosts import FAILURES_TO_OPEN, FIRST_PAUSE_S, FORGET_S, MAX_PAUSE_S, Hosts

BAD = ("acme", "bad")


def fail(hosts: Hosts, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        hosts.record(BAD, ok=False, began_at=now, now=now)


def test_a_few_failures_pause_nothing() -> None:
    hosts = Hosts()

    fail(hosts, FAILURES_TO_OPEN - 1)

    assert hosts.pause_left_s(BAD, 0.0) == 0.0
    assert hosts.may_call(BAD, 0.0)


def test_a_failing_host_is_paused_for_its_tenant_and_for_nobody_else() -> None:
    hosts = Hosts()

    fail(hosts, FAILURES_TO_OPEN)

    assert hosts.pause_left_s(BAD, 0.0) == FIRST_PAUSE_S
    assert not hosts.may_call(BAD, 0.0)
    for other in (("acme", "good"), ("umbrella", "bad")):
        assert hosts.pause_left_s(other, 0.0) == 0.0
        assert hosts.may_call(other, 0.0)


def test_after_a_pause_one_delivery_at_a_time_tries_until_one_is_accepted() -> None:
    hosts = Hosts()
    fail(hosts, FAILURES_TO_OPEN)
    assert hosts.may_call(BAD, FIRST_PAUSE_S)

    hosts.begin(BAD)
    assert not hosts.may_call(BAD, FIRST_PAUSE_S)
    hosts.record(BAD, ok=True, began_at=FIRST_PAUSE_S, now=FIRST_PAUSE_S)

    assert hosts.may_call(BAD, FIRST_PAUSE_S)


def test_a_pause_ends_and_the_next_failure_doubles_it() -> None:
    hosts = Hosts()
    fail(hosts, FAILURES_TO_OPEN)
    assert hosts.pause_left_s(BAD, FIRST_PAUSE_S) == 0.0

    fail(hosts, 1, now=FIRST_PAUSE_S)

    assert hosts.pause_left_s(BAD, FIRST_PAUSE_S) == 2 * FIRST_PAUSE_S


def test_what_was_on_its_way_when_a_pause_began_makes_it_no_longer() -> None:
    hosts = Hosts()
    fail(hosts, FAILURES_TO_OPEN, now=15.0)

    for late_s in (0.0, 1.0, FIRST_PAUSE_S + 5.0):
        hosts.record(BAD, ok=False, began_at=14.0, now=15.0 + late_s)

    assert hosts.pause_left_s(BAD, 15.0) == FIRST_PAUSE_S
    fail(hosts, 1, now=60.0)
    assert hosts.pause_left_s(BAD, 60.0) == 2 * FIRST_PAUSE_S


def test_what_was_on_its_way_and_is_accepted_ends_the_pause() -> None:
    hosts = Hosts()
    fail(hosts, FAILURES_TO_OPEN, now=15.0)

    hosts.record(BAD, ok=True, began_at=14.0, now=16.0)

    assert hosts.pause_left_s(BAD, 16.0) == 0.0
    fail(hosts, FAILURES_TO_OPEN, now=16.0)
    assert hosts.pause_left_s(BAD, 16.0) == FIRST_PAUSE_S


def test_pauses_have_an_end() -> None:
    hosts, now = Hosts(), 0.0
    fail(hosts, FAILURES_TO_OPEN)

    for _ in range(3000):
        now += hosts.pause_left_s(BAD, now)
        fail(hosts, 1, now=now)

    assert hosts.pause_left_s(BAD, now) == MAX_PAUSE_S


def test_one_success_clears_the_record() -> None:
    hosts = Hosts()
    fail(hosts, FAILURES_TO_OPEN - 1)
    hosts.record(BAD, ok=True, began_at=0.0, now=0.0)

    fail(hosts, FAILURES_TO_OPEN - 1)

    assert hosts.pause_left_s(BAD, 0.0) == 0.0


def test_names_that_failed_long_ago_are_forgotten() -> None:
    hosts = Hosts()

    for second in range(3 * int(FORGET_S)):
        hosts.record(("acme", f"job-{second}.example"), ok=False, began_at=float(second), now=float(second))

    assert len(hosts) <= FORGET_S + 1


def test_of_too_many_names_the_oldest_are_forgotten_and_those_in_flight_are_not() -> None:
    hosts = Hosts(max_remembered=3)
    hosts.begin(BAD)
    fail(hosts, FAILURES_TO_OPEN)

    for name in "abcdef":
        hosts.record(("acme", name), ok=False, began_at=0.0, now=1.0)

    assert len(hosts) == 3
    assert hosts.pause_left_s(BAD, 1.0) > 0
    hosts.end(BAD)


def test_a_host_in_good_standing_takes_no_memory() -> None:
    hosts = Hosts()

    hosts.begin(BAD)
    hosts.record(BAD, ok=True, began_at=0.0, now=0.0)
    hosts.end(BAD)

    assert len(hosts) == 0
