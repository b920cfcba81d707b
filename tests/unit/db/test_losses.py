"""Whose fault it is that an engine died: no innocent job is struck, and the guilty one is dead soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from math import ceil, log2
from typing import Any
from uuid import UUID

import pytest

from db.losses import MAX_LOSSES, Blame, HeldJob, HostRecord, are_suspects, blame, lone_job
from db.records import WorkerEnd

T0 = datetime(2026, 1, 1, tzinfo=UTC)
_GROUPS = (UUID(int=number) for number in count(1_000_000))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def job(number: int, **facts: Any) -> HeldJob:
    return HeldJob(UUID(int=number), 1, **facts)


def judge(
    held: Sequence[HeldJob],
    end: WorkerEnd = "engine_died",
    *,
    is_canary: bool = False,
    is_only_host: bool = True,
) -> list[Blame]:
    return blame(held, end, is_canary=is_canary, is_only_host=is_only_host, new_group=lambda: next(_GROUPS))


def in_step(number: int, **facts: Any) -> HeldJob:
    return job(number, is_running=True, is_in_step=True, **facts)


def test_the_rows_of_the_step_are_suspects_in_two_halves_and_nobody_is_struck() -> None:
    held = [in_step(1), in_step(2), in_step(3), job(4, is_running=True), job(5)]

    first, second, third, ran, waited = judge(held)

    assert first.group == second.group is not None
    assert third.group not in (None, first.group)
    assert (ran.group, waited.group) == (None, None)
    assert not any(one.is_struck or one.is_dead for one in (first, second, third, ran, waited))


def test_only_a_job_that_was_alone_in_the_engine_is_struck() -> None:
    (alone, waiting) = judge([in_step(1), job(2)])
    (beside, neighbour) = judge([in_step(1), job(2, is_running=True)])

    assert (alone.is_struck, alone.strikes, waiting.strikes) == (True, 1, 0)
    assert (beside.is_struck, neighbour.is_struck) == (False, False)
    assert beside.group is not None


def test_the_third_strike_is_death() -> None:
    (dead,) = judge([in_step(1, strikes=2)])

    assert dead.is_dead


@pytest.mark.parametrize("end", ["drained", "device_lost"])
def test_a_drain_and_a_lost_card_are_no_jobs_fault(end: WorkerEnd) -> None:
    assert judge([in_step(1, strikes=2), job(2, losses=4)], end) == [
        Blame(UUID(int=1), 1), Blame(UUID(int=2), 1)
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["engine_died", "engine_hung", "vanished", "consumer_failed", "broken"])
def test_nothing_counts_on_a_host_in_doubt(end: WorkerEnd) -> None:
    assert judge([in_step(1, strikes=2, losses=4)], end, is_canary=True) == [Blame(UUID(int=1), 1)]


def test_the_first_loss_is_free_and_the_second_makes_suspects() -> None:
    first = judge([job(1), job(2)], "vanished")
    second = judge([job(1, losses=1), job(2, losses=1), job(3)], "vanished")

    assert [(one.losses, one.group) for one in first] == [(1, None), (1, None)]
    assert [one.losses for one in second] == [2, 2, 1]
    assert len({one.group for one in second}) == 3
    assert second[2].group is None
    assert not any(one.is_struck for one in [*first, *second])


def test_a_suspect_that_ran_alone_on_a_worker_that_vanished_is_struck() -> None:
    group = UUID(int=9)
    (running,) = judge([job(1, losses=2, group=group, is_running=True)], "vanished")
    (waiting,) = judge([job(1, losses=2, group=group)], "vanished")
    (unsuspected,) = judge([job(1, losses=1, is_running=True)], "vanished")

    assert (running.is_struck, waiting.is_struck, unsuspected.is_struck) == (True, False, False)


@pytest.mark.parametrize("end", ["consumer_failed", "broken"])
def test_a_worker_that_gives_its_jobs_back_counts_a_loss_for_those_that_ran(end: WorkerEnd) -> None:
    ran, waited = judge([job(1, losses=1, group=UUID(int=9), is_running=True), job(2)], end)

    assert (ran.losses, waited.losses) == (2, 0)
    assert (ran.is_struck, waited.is_struck) == (False, False)


def test_five_losses_are_death_on_two_hosts_or_on_the_only_one() -> None:
    spent: dict[str, Any] = {"losses": MAX_LOSSES - 1, "group": UUID(int=9)}

    (on_two,) = judge([job(1, num_hosts=2, **spent)], "vanished", is_only_host=False)
    (on_the_only_one,) = judge([job(1, **spent)], "vanished")
    (on_one_of_two,) = judge([job(1, **spent)], "vanished", is_only_host=False)

    assert (on_two.is_dead, on_the_only_one.is_dead, on_one_of_two.is_dead) == (True, True, False)


def die(
    record: HostRecord, *seconds: float, has_ended: bool = False, by_suspects: bool = False
) -> HostRecord:
    for second in seconds:
        record = record.after_death(at(second), has_ended=has_ended, by_suspects=by_suspects)
    return record


def test_a_host_is_in_doubt_after_two_deaths_without_an_ended_job() -> None:
    once, twice = die(HostRecord(), 0.0), die(HostRecord(), 0.0, 10.0)

    assert once.canary(at(1.0)) is None
    canary = twice.canary(at(11.0))
    assert canary is not None
    assert "died 2 times without one ended job" in canary.reason
    assert canary.wait_s == 0.0


def test_a_host_is_in_doubt_after_three_deaths_within_ten_minutes_whatever_has_ended() -> None:
    twice = die(HostRecord(), 0.0, 290.0, has_ended=True)
    thrice = die(twice, 599.0, has_ended=True)

    assert twice.canary(at(291.0)) is None
    canary = thrice.canary(at(599.0))
    assert canary is not None
    assert "died 3 times within 10 minutes" in canary.reason
    assert thrice.canary(at(600.0)) is None  # the first of them is no longer recent


def test_a_canary_that_ended_makes_the_host_sound() -> None:
    doubtful = die(HostRecord(), 0.0, 10.0, 20.0)

    assert die(doubtful, 30.0, has_ended=True).canary(at(31.0)) is None


def test_canaries_pause_longer_and_longer_and_ten_minutes_without_a_death_end_the_doubt() -> None:
    record, waits = die(HostRecord(), 0.0, 0.0), []
    for _ in range(9):
        record = die(record, 0.0)
        canary = record.canary(at(0.0))
        assert canary is not None
        waits.append(canary.wait_s)

    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]
    assert record.canary(at(599.9)) is not None
    assert record.canary(at(600.0)) is None


def test_a_death_that_suspects_explain_is_not_held_against_a_host_that_has_ended_jobs() -> None:
    proven = die(HostRecord(), 0.0, has_ended=True, by_suspects=True)
    unproven = die(HostRecord(), 0.0, by_suspects=True)

    assert die(proven, 1.0, by_suspects=True).canary(at(2.0)) is None
    assert die(unproven, 1.0, by_suspects=True).canary(at(2.0)) is not None


@dataclass
class OneHost:
    """A pool of one host that runs jobs of which some end every engine, as the leader has them run."""

    guilty: set[UUID]
    waiting: list[HeldJob]
    end: WorkerEnd = "engine_died"
    broken: bool = False
    record: HostRecord = field(default_factory=HostRecord)
    dead: list[UUID] = field(default_factory=list)
    struck: set[UUID] = field(default_factory=set)
    deaths: int = 0
    now_s: float = 0.0
    paused_s: float = 0.0
    """Beside `now_s`, in which no doubt ends by its age."""
    has_ended: bool = False

    def run(self, max_deaths: int = 100) -> None:
        """Run what waits until it has ended, or so many engines have died."""
        while self.waiting and self.deaths < max_deaths:
            batch = self._next()
            if not self.broken and not self.guilty & {one.job_id for one in batch}:
                self.waiting = [one for one in self.waiting if one not in batch]
                self.has_ended = True
                continue
            self._die(batch)

    def _canary(self) -> bool:
        return not self.has_ended and self.record.canary(at(self.now_s)) is not None

    def _next(self) -> list[HeldJob]:
        """What the policy chooses: others before suspects, and of those the group that was tried least."""
        ordinary = [one for one in self.waiting if one.group is None]
        least = min(self.waiting, key=lambda one: (one.group is not None, one.attempt, one.job_id))
        group = [one for one in self.waiting if one.group == least.group and one.group is not None]
        batch = ordinary or group
        return batch[:1] if self._canary() else batch[:32]

    def _die(self, batch: list[HeldJob]) -> None:
        canary = None if self.has_ended else self.record.canary(at(self.now_s))
        self.deaths += 1
        self.now_s += 5.0
        self.paused_s += canary.wait_s if canary else 0.0
        is_known = self.end != "vanished"
        held = [one._replace(is_running=True, is_in_step=is_known) for one in batch]
        alone = lone_job(held, self.end)
        is_excused = not self.has_ended and self.record.excuses(at(self.now_s), alone)
        blamed = judge(held, self.end, is_canary=is_excused)
        struck = {one.job_id for one in blamed if one.is_struck}
        self.record = self.record.after_death(
            at(self.now_s),
            has_ended=self.has_ended,
            by_suspects=are_suspects(held, self.end),
            lone_job=alone,
        )
        self.has_ended = False
        self.struck |= struck
        self.dead += [one.job_id for one in blamed if one.is_dead]
        after = {one.job_id: one for one in blamed}
        self.waiting = [
            one
            if (verdict := after.get(one.job_id)) is None
            else one._replace(
                attempt=one.attempt + 1,
                strikes=one.strikes if verdict.strikes is None else verdict.strikes,
                losses=one.losses if verdict.losses is None else verdict.losses,
                group=verdict.group or one.group,
            )
            for one in self.waiting
            if one.job_id not in self.dead
        ]


@pytest.mark.parametrize("num_rows", [2, 3, 4, 7, 8, 16, 31, 32])
@pytest.mark.parametrize("has_ended", [False, True])
def test_the_guilty_job_is_dead_after_log2_of_the_rows_and_three_deaths(
    num_rows: int, *, has_ended: bool
) -> None:
    for guilty in range(num_rows):
        host = OneHost({UUID(int=guilty)}, [job(number) for number in range(num_rows)], has_ended=has_ended)

        host.run()

        assert host.dead == [UUID(int=guilty)]
        assert host.struck == {UUID(int=guilty)}
        assert host.deaths <= ceil(log2(num_rows)) + 3
        assert host.waiting == []


def test_a_job_alone_is_dead_after_three_deaths_on_a_host_that_has_ended_jobs() -> None:
    host = OneHost({UUID(int=0)}, [job(0)], has_ended=True)

    host.run()

    assert (host.dead, host.deaths) == ([UUID(int=0)], 3)


@pytest.mark.parametrize("num_guilty", [2, 3])
def test_several_guilty_jobs_die_and_their_neighbours_do_not(num_guilty: int) -> None:
    guilty = {UUID(int=number * 5) for number in range(num_guilty)}
    host = OneHost(guilty, [job(number) for number in range(24)])

    host.run()

    assert set(host.dead) == host.struck == guilty
    assert host.waiting == []


def test_a_broken_host_strikes_none_of_many_jobs_however_often_it_dies() -> None:
    host = OneHost(set(), [job(number) for number in range(32)], broken=True)

    host.run(max_deaths=20)

    assert (host.dead, host.struck, len(host.waiting)) == ([], set(), 32)
    assert host.deaths == 20


@pytest.mark.parametrize(("end", "minutes"), [("engine_died", 3), ("engine_hung", 3), ("vanished", 7)])
def test_a_job_that_alone_has_ever_run_on_the_only_host_is_dead_within_minutes(
    end: WorkerEnd, minutes: float
) -> None:
    host = OneHost({UUID(int=0)}, [job(0)], end)

    host.run()

    assert host.dead == [UUID(int=0)]
    assert host.now_s + host.paused_s <= minutes * 60


@pytest.mark.parametrize("num_jobs", [2, 3, 8])
@pytest.mark.parametrize("end", ["engine_died", "vanished"])
@pytest.mark.parametrize("arrives_after", [0, 1, 5])
def test_a_broken_host_strikes_nobody_for_what_it_does_in_doubt_once_two_jobs_have_died_there(
    num_jobs: int, end: WorkerEnd, arrives_after: int
) -> None:
    host = OneHost(set(), [job(0)], end, broken=True)
    host.run(max_deaths=arrives_after)
    struck = {one.job_id: one.strikes for one in host.waiting}
    host.waiting += [job(number) for number in range(1, num_jobs)]

    host.run(max_deaths=arrives_after + 12)

    assert host.dead == []
    in_doubt = {one.job_id: one.strikes for one in host.waiting}
    before_doubt = 2 - min(arrives_after, 2)
    assert sum(in_doubt.values()) - sum(struck.values()) <= before_doubt


def test_one_death_of_another_clears_a_job_that_was_alone_in_all_the_others() -> None:
    record = HostRecord()
    for number in range(8):
        record = record.after_death(
            at(number), has_ended=False, by_suspects=True, lone_job=UUID(int=number // 7)
        )
    assert record.excuses(at(9.0), UUID(int=0))
    assert record.excuses(at(9.0), UUID(int=1))

    for number in range(20):
        record = record.after_death(at(number), has_ended=False, by_suspects=True, lone_job=UUID(int=1))
    assert record.excuses(at(21.0), UUID(int=1))  # not all of the row were its own


def test_a_death_that_an_earlier_release_counted_proves_nothing() -> None:
    proven = HostRecord((at(0.0),), 6, lone_job=UUID(int=1), lone_deaths=6)
    counted_elsewhere = HostRecord((at(0.0),), 7, lone_job=UUID(int=1), lone_deaths=6)

    assert not proven.excuses(at(1.0), UUID(int=1))
    assert proven.excuses(at(1.0), UUID(int=2))
    assert proven.excuses(at(1.0), None)
    assert counted_elsewhere.excuses(at(1.0), UUID(int=1))
