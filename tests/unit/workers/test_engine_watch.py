"""An engine that hangs is ended, a slow one and one that was stopped with its worker are not."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from tests.unit.workers.scripted_engine import ScriptedEngine
from workers.engine.core.errors import EngineDied, EngineHung
from workers.engine.serving.process import EngineProcess
from workers.engine.serving.step_board import Phase, Progress
from workers.engine_watch import EngineWatch, ProgressLimit

LOOK_S = 0.05
STEP = Progress(Phase.STEPPING, num_moves=7, num_taken=1, num_steps=3, predicted_s=0.01, num_requests=1)


class Watched:
    """A watch whose clock the test moves, over an engine that says what the test writes."""

    def __init__(self, word: Progress) -> None:
        self.engine = ScriptedEngine()
        self.engine.word, self.engine.num_sent = word, 1
        self.limit = ProgressLimit(start_s=30.0, floor_s=10.0, factor=20.0)
        self.hung: list[EngineDied] = []
        self.num_ended = self.num_looks = 0
        self.now = 0.0
        self.are_held = True
        self.watch = EngineWatch(
            cast("EngineProcess", self.engine),
            self.limit,
            self,
            on_hung=self.hung.append,
            on_broken=lambda _: None,
        )

    def stop_overdue(self, now: float) -> None:
        self.num_looks += 1

    def end_unanswered(self) -> None:
        self.num_ended += 1

    def pass_s(self, seconds: float, *, each_s: float = LOOK_S) -> None:
        """Let time pass, with a look so often."""
        for _ in range(round(seconds / each_s)):
            if self.hung:
                return
            self.now += each_s
            self.watch.look(self.now)


def test_a_step_that_never_comes_back_ends_the_engine_at_its_limit() -> None:
    watched = Watched(STEP)

    watched.pass_s(9.9)
    before = list(watched.hung)
    watched.pass_s(0.3)

    assert before == []
    assert isinstance(watched.hung[0], EngineHung)
    assert "no progress for 10.0 s, of 10.0 s at most, in step 4 of 1 requests" in watched.engine.given_up


def test_a_step_that_takes_two_floors_as_predicted_goes_on() -> None:
    watched = Watched(replace(STEP, predicted_s=1.01))

    watched.pass_s(20.0)
    assert watched.hung == []

    watched.pass_s(0.5)
    assert len(watched.hung) == 1


def test_time_in_which_the_worker_was_stopped_as_well_does_not_count() -> None:
    watched = Watched(STEP)
    watched.pass_s(1.0)

    watched.pass_s(30.0, each_s=30.0)

    assert watched.hung == []
    assert watched.limit.stuck_s == pytest.approx(1.45)


def test_an_engine_that_moves_is_never_ended() -> None:
    watched = Watched(STEP)

    for number in range(30):
        watched.engine.word = replace(STEP, num_moves=number)
        watched.pass_s(9.0, each_s=0.5)

    assert watched.hung == []


def test_waiting_has_no_limit_until_a_command_is_not_taken() -> None:
    watched = Watched(replace(STEP, phase=Phase.WAITING))
    watched.pass_s(60.0, each_s=0.5)
    assert watched.limit.stuck_s == 0.0

    watched.engine.num_sent = 2
    watched.pass_s(11.0, each_s=0.5)

    assert len(watched.hung) == 1
    assert "in waiting" in watched.engine.given_up


def test_until_the_first_step_is_done_the_limit_is_that_of_the_start() -> None:
    watched = Watched(replace(STEP, num_steps=0))

    watched.pass_s(29.5, each_s=0.5)
    assert watched.hung == []

    watched.pass_s(1.0, each_s=0.5)
    assert len(watched.hung) == 1


def test_meanwhile_it_is_late_and_what_was_stopped_ends_without_it() -> None:
    watched = Watched(STEP)

    watched.pass_s(1.5)
    early = (watched.limit.is_late, watched.num_ended)
    watched.pass_s(0.5)
    late = (watched.limit.is_late, watched.num_ended)
    watched.pass_s(4.0)

    assert (early, late) == ((False, 0), (True, 0))
    assert watched.num_ended > 0
    assert watched.num_looks == 120


def test_it_sleeps_while_nothing_is_held_and_the_engine_has_nothing_to_do() -> None:
    watched = Watched(replace(STEP, phase=Phase.WAITING))
    watched.are_held = False

    watched.watch.look(1.0)
    at_rest = watched.watch.may_sleep
    watched.are_held = True
    watched.watch.look(2.0)
    with_a_job = watched.watch.may_sleep
    watched.are_held, watched.engine.num_sent = False, 2
    watched.watch.look(3.0)

    assert (at_rest, with_a_job, watched.watch.may_sleep) == (True, False, False)


def test_a_sleep_says_nothing_of_an_engine_that_was_given_something_meanwhile() -> None:
    watched = Watched(replace(STEP, phase=Phase.WAITING))
    watched.watch.look(1.0)

    watched.engine.num_sent = 2
    watched.watch.look(3600.0)

    assert watched.limit.stuck_s == 0.0
