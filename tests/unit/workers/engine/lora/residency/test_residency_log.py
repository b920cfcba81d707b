from __future__ import annotations

from workers.engine.core.residency_change import ResidencyChange
from workers.engine.lora.residency import residency_log
from workers.engine.lora.residency.residency_log import ResidencyLog


def test_moves_are_numbered_from_one_and_drained_once() -> None:
    log = ResidencyLog()
    log.record("a", "host")
    log.record("a", "device")
    log.record("b", "host")

    assert log.drain() == [
        ResidencyChange(1, "a", "host"),
        ResidencyChange(2, "a", "device"),
        ResidencyChange(3, "b", "host"),
    ]
    assert log.drain() == []
    assert log.epoch == 3
    assert log.tiers() == {"a": "device", "b": "host"}


def test_staying_where_it_is_is_no_change() -> None:
    log = ResidencyLog()
    log.record("a", "none")
    log.record("a", "host")
    log.record("a", "host")

    assert [change.epoch for change in log.drain()] == [1]


def test_leaving_removes_the_revision_and_epochs_go_on() -> None:
    log = ResidencyLog()
    log.record("a", "host")
    log.drain()
    log.record("a", "none")

    assert log.drain() == [ResidencyChange(2, "a", "none")]
    assert log.tiers() == {}
    assert log.tier_of("a") == "none"


def test_an_owner_that_never_drains_costs_bounded_memory_and_sees_the_newest() -> None:
    log = ResidencyLog()
    for number in range(3 * residency_log._MAX_UNDRAINED):
        log.record(f"r{number % 7}", "host" if number // 7 % 2 == 0 else "device")

    changes = log.drain()
    assert len(changes) <= residency_log._MAX_UNDRAINED + 1
    assert [change.epoch for change in changes] == sorted(change.epoch for change in changes)
    assert {change.revision: change.tier for change in changes} == log.tiers()
