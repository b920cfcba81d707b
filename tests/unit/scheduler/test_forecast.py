"""What the leader foresees from the pace of ends and the tokens that wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

import pytest

from db.records import WorkerDevice, WorkerLimits, WorkerRow
from scheduler.catalogue import Catalogue
from scheduler.fleet import Fleet
from scheduler.forecast import MAX_RETRY_S, MIN_RETRY_S, Forecast, QueuePlace
from scheduler.instructions import Instructions, Pauses
from scheduler.item_failures import ItemFailures
from scheduler.leader_context import LeaderContext
from scheduler.queue_feed import QueueFeed
from scheduler.store_failures import StoreFailures
from scheduler.worker_state import Outstanding
from tests.unit.scheduler.policies.making import job

LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=10, block_size=16, max_model_len=64, max_loras=2, max_lora_rank=8
)
TOKENS = 20
"""Of each job in the queue."""


@dataclass
class Pool:
    """One worker with two jobs of 100 tokens, of which a job makes 10 in a second; nothing asks a ledger."""

    weights: Mapping[str, float] | None = None
    now: float = 0.0
    instructions: Instructions = field(init=False)
    fleet: Fleet = field(init=False)
    queue: QueueFeed = field(init=False)
    forecast: Forecast = field(init=False)

    def __post_init__(self) -> None:
        clock = self.clock
        self.instructions = Instructions("pool", clock)
        self.fleet = Fleet(ItemFailures(clock), StoreFailures(), max_model_len=64, overcommit_s=0.5)
        context = cast("LeaderContext", None)
        self.queue = QueueFeed(context, Catalogue("pool"), self.instructions, clock)
        weights = None if (known := self.weights) is None else lambda: known
        self.forecast = Forecast(self.fleet, self.queue, self.instructions, clock, weights)
        row = WorkerRow("w", "pool", "host", "ready", LIMITS, 10.0, WorkerDevice(), None)
        self.fleet.take_roll([row])
        self.fleet.pace.observe(100, 10.0, now=0.0)
        for number in (1001, 1002):
            self.hold(number)

    def clock(self) -> float:
        return self.now

    def hold(self, number: int) -> None:
        worker = self.fleet.find("w")
        assert worker is not None
        worker.give(UUID(int=number), Outstanding(1, None, 100, is_suspect=False, dispatched_at=0.0))

    def wait(self, *numbers: int, tenant: str = "t") -> None:
        for number in numbers:
            self.queue.backlog.add(job(number, tenant=tenant))

    def place(self, number: int) -> QueuePlace:
        return self.forecast.place(UUID(int=number))


def test_a_job_waits_for_what_stands_before_it_and_then_takes_its_own_time() -> None:
    pool = Pool()
    pool.wait(1, 2, 3)

    # 40 tokens before it at 20 a second, then its own 20 at 10.
    assert [*pool.place(3)] == [2, pytest.approx(4.0)]
    pool.hold(1003)
    pool.hold(1004)
    assert [*pool.place(3)] == [2, pytest.approx(3.0)]


def test_a_job_in_a_workers_hand_has_what_is_left_of_its_time_and_an_unknown_one_nothing() -> None:
    pool = Pool(now=4.0)
    assert [*pool.place(1001)] == [None, pytest.approx(6.0)]

    pool.now = 20.0
    assert [*pool.place(1001)] == [None, 0.0]
    assert [*pool.place(7)] == [None, None]


def test_without_anything_that_runs_or_in_a_paused_pool_no_end_is_foreseen() -> None:
    paused, idle = Pool(), Pool()
    paused.instructions.pauses = Pauses(pool=True)
    worker = idle.fleet.find("w")
    assert worker is not None
    worker.clear()
    for pool in (paused, idle):
        pool.wait(1, 2)

    assert paused.place(2) == idle.place(2) == QueuePlace(1, None)
    assert paused.forecast.retry_after_s(10) == MAX_RETRY_S
    assert idle.forecast.retry_after_s(10) == MIN_RETRY_S


def test_a_full_queue_has_room_again_once_a_twentieth_of_it_has_drained() -> None:
    pool = Pool()
    assert pool.forecast.retry_after_s(1000) == MIN_RETRY_S

    pool.wait(*range(1, 101))

    assert pool.forecast.retry_after_s(800) == pytest.approx(40 * TOKENS / 20)
    assert pool.forecast.retry_after_s(10**6) == MAX_RETRY_S
    pool.fleet.take_roll([])
    assert pool.forecast.retry_after_s(1) == MAX_RETRY_S


@pytest.mark.parametrize(
    ("weights", "retry_after_s", "position"), [(None, 20.0, 42), ({}, 10.0, 18), ({"small": 3.0}, 6.67, 12)]
)
def test_a_tenants_quota_drains_at_its_share(
    weights: Mapping[str, float] | None, retry_after_s: float, position: int
) -> None:
    pool = Pool(weights)
    pool.wait(*range(1, 34), tenant="flood")
    pool.wait(*range(101, 112), tenant="small")

    # Five jobs of its quota of 100: 100 tokens, of 20 a second by its share of the queue, or of the weights.
    found = pool.forecast.tenant_retry_after_s("small", 100)
    assert found == pytest.approx(retry_after_s, abs=0.01)
    assert pool.place(110).position == position
    assert pool.forecast.tenant_retry_after_s("nobody", 100) == MIN_RETRY_S


def test_a_jobs_own_time_is_that_of_the_answers_of_its_adapter_once_any_were_written() -> None:
    pool = Pool()
    pool.wait(1)
    assert pool.place(1).eta_s == pytest.approx(2.0), "20 tokens that it may come to, at 10 a second"

    pool.fleet.output_pace.observe(20, 10.0, now=0.0)

    assert pool.place(1).eta_s == pytest.approx(5.0), "10 that it may write, at 2 a second"


def test_the_outlook_reckons_with_the_fastest_start_that_a_worker_has_told() -> None:
    pool = Pool()
    assert pool.fleet.outlook().worker_start_s == 0.0

    rows = [
        WorkerRow(name, "pool", "host", "ready", LIMITS, 10.0, WorkerDevice(), None, start_s=start_s)
        for name, start_s in (("x", 30.0), ("y", 12.0), ("z", None))
    ]
    pool.fleet.take_roll(rows)
    pool.fleet.output_pace.observe(20, 10.0, now=0.0)

    outlook = pool.fleet.outlook()
    assert (outlook.worker_start_s, outlook.output_token_s, outlook.num_workers) == (12.0, 0.5, 3)
