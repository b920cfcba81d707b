"""A worker with nothing new to say to the ledger, or to ask of it, sends nothing."""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import pytest

from db.database import Database
from db.errors import DatabaseUnavailable
from db.records import Aborts, WorkerDevice, WorkerLimits
from lorayard.contract.messages import HeldJob
from workers.registration import Registration

LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=80, block_size=16, max_model_len=512, max_loras=4, max_lora_rank=16
)


class CountedTrips:
    """Counts transactions, none of which gets anywhere."""

    def __init__(self) -> None:
        self.num_trips = 0
        self.is_away = False

    def run(self, _work: Any) -> None:
        self.num_trips += 1
        if self.is_away:
            raise DatabaseUnavailable("away")


@pytest.fixture
def trips() -> CountedTrips:
    return CountedTrips()


@pytest.fixture
def registration(trips: CountedTrips) -> Registration:
    database = cast("Database", trips)
    return Registration(
        database, "w", "pool", "w@host", LIMITS, host="h", store="s", device=WorkerDevice("cpu"), lease_s=10.0
    )


def test_of_no_jobs_in_hand_nothing_is_asked(registration: Registration, trips: CountedTrips) -> None:
    assert registration.aborts([]) == Aborts()
    assert trips.num_trips == 0


def test_a_report_goes_out_when_it_differs_from_the_last(
    registration: Registration, trips: CountedTrips
) -> None:
    job = HeldJob(job_id=uuid4(), attempt=1, running=True)
    counts = []

    for held, succeeded in (([], 0), ([], 0), ([job], 0), ([job], 0), ([], 1), ([], 1)):
        registration.report(held, succeeded)
        counts.append(trips.num_trips)

    assert counts == [1, 1, 2, 2, 3, 3]


def test_a_report_that_did_not_get_through_goes_out_again(
    registration: Registration, trips: CountedTrips
) -> None:
    trips.is_away = True
    with pytest.raises(DatabaseUnavailable):
        registration.report([], 0)
    trips.is_away = False

    registration.report([], 0)

    assert trips.num_trips == 2
