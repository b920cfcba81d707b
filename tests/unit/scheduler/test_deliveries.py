"""How long a job is waited for whose messages got lost, and when it is given up."""

from __future__ import annotations

from uuid import uuid4

from scheduler.deliveries import Deliveries


def test_patience_doubles_to_its_bound_and_the_sixth_loss_gives_the_job_up() -> None:
    deliveries, job_id = Deliveries(), uuid4()
    patience, given_up = [], []
    for _ in range(6):
        patience.append(deliveries.patience_s(job_id))
        given_up.append(deliveries.lost([job_id]))

    assert patience == [3.0, 6.0, 12.0, 24.0, 48.0, 48.0]
    assert given_up == [[], [], [], [], [], [job_id]]


def test_a_job_goes_alone_once_a_message_of_it_was_lost_until_it_is_listed() -> None:
    deliveries, job_id, other = Deliveries(), uuid4(), uuid4()
    assert not deliveries.goes_alone(job_id)

    deliveries.lost([job_id])
    assert deliveries.goes_alone(job_id)
    assert not deliveries.goes_alone(other)

    deliveries.arrived([other, job_id])
    assert not deliveries.goes_alone(job_id)
    assert deliveries.patience_s(job_id) == 3.0
    assert len(deliveries) == 0
