"""What the leader knows of all workers together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from db.records import JobAttempt, WorkerDevice, WorkerLimits, WorkerRow
from scheduler.fleet import Fleet
from scheduler.item_failures import ItemFailures
from scheduler.leader import Leader
from scheduler.store_failures import StoreFailures
from scheduler.worker_state import Outstanding, WorkerState

LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=10, block_size=16, max_model_len=64, max_loras=2, max_lora_rank=8
)


def outstanding(batch_id: UUID) -> Outstanding:
    return Outstanding(1, "rev", 40, is_suspect=False, dispatched_at=0.0, batch_id=batch_id)


def fleet_of_one() -> tuple[Fleet, WorkerState]:
    fleet = Fleet(ItemFailures(lambda: 0.0), StoreFailures(), max_model_len=64, overcommit_s=0.0)
    fleet.take_roll([WorkerRow("w", "pool", "host", "ready", LIMITS, 30.0, WorkerDevice("cpu"), None)])
    worker = fleet.find("w")
    assert worker is not None
    return fleet, worker


def test_a_micro_batch_means_its_jobs_in_hand_and_any_other_id_itself() -> None:
    fleet, worker = fleet_of_one()
    batch_id, ended, first, second, stranger = (uuid4() for _ in range(5))
    for job_id in (ended, first, second):
        worker.give(job_id, outstanding(batch_id))
    worker.give(uuid4(), outstanding(uuid4()))

    worker.take_back(JobAttempt(ended, 1))

    assert fleet.jobs_of([batch_id, stranger]) == [first, second, stranger]


def test_a_leader_that_stood_still_excuses_what_was_not_listed_meanwhile_once() -> None:
    fleet, worker = fleet_of_one()
    worker.give(uuid4(), outstanding(uuid4()))
    assert worker.missing(100.0).unheard
    leader: Any = object.__new__(Leader)
    leader.fleet, leader.clock, leader.num_lapses = fleet, lambda: 100.0, 0

    for is_valid, num_lapses in ((False, 0), (True, 1)):
        leader.keeper = SimpleNamespace(is_valid=is_valid, num_lapses=num_lapses)
        leader._excuse_standstill()
        assert not worker.missing(100.0)

    leader.clock = lambda: 105.0
    leader._excuse_standstill()
    assert worker.missing(110.0).unheard
