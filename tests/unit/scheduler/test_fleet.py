"""What the leader knows of all workers together."""

from __future__ import annotations

from uuid import UUID, uuid4

from db.records import JobAttempt, WorkerDevice, WorkerLimits, WorkerRow
from scheduler.fleet import Fleet
from scheduler.item_failures import ItemFailures
from scheduler.store_failures import StoreFailures
from scheduler.worker_state import Outstanding

LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=10, block_size=16, max_model_len=64, max_loras=2, max_lora_rank=8
)


def outstanding(batch_id: UUID) -> Outstanding:
    return Outstanding(1, "rev", 40, is_suspect=False, dispatched_at=0.0, batch_id=batch_id)


def test_a_micro_batch_means_its_jobs_in_hand_and_any_other_id_itself() -> None:
    fleet = Fleet(ItemFailures(lambda: 0.0), StoreFailures(), max_model_len=64, overcommit_s=0.0)
    fleet.take_roll([WorkerRow("w", "pool", "host", "ready", LIMITS, 30.0, WorkerDevice("cpu"), None)])
    worker = fleet.find("w")
    assert worker is not None
    batch_id, ended, first, second, stranger = (uuid4() for _ in range(5))
    for job_id in (ended, first, second):
        worker.give(job_id, outstanding(batch_id))
    worker.give(uuid4(), outstanding(uuid4()))

    worker.take_back(JobAttempt(ended, 1))

    assert fleet.jobs_of([batch_id, stranger]) == [first, second, stranger]
