"""Only time in which the loop ran counts; the tests have its clock jump, as it does for a stopped process."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.workers.webhooks.stopped_loop import jump
from workers.webhooks.running_time import MAX_LOOK_S, RunningTime


def test_time_in_which_the_process_was_stopped_ends_nothing() -> None:
    async def work() -> RunningTime:
        async with RunningTime(30.0) as time:
            for _ in range(3):
                await jump(100.0)
        return time

    time = asyncio.run(work())

    assert 3 * MAX_LOOK_S <= time.passed_s < 30.0
    assert 270.0 < time.stood_still_s <= 300.0


def test_a_loop_that_is_late_again_and_again_has_an_end_all_the_same() -> None:
    async def work() -> None:
        async with RunningTime(3 * MAX_LOOK_S):
            for _ in range(4):
                await jump(100.0)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(work())


def test_what_takes_longer_than_its_limit_is_ended() -> None:
    async def work() -> None:
        async with RunningTime(0.05):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(work())


def test_what_fails_within_its_limit_fails_as_it_did() -> None:
    async def work() -> None:
        async with RunningTime(30.0):
            raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        asyncio.run(work())
