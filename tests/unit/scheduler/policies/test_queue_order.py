"""Where a waiting job stands, by class and admission or by shares."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scheduler.policies import PendingJob
from scheduler.policies.queue_order import BLOCK_JOBS, Ahead, QueueOrder
from tests.unit.scheduler.policies.making import backlog_of, job

TOKENS = 20
"""Of each job: as many as `making.job` gives to prompt and answer."""


def order_of(*jobs: PendingJob) -> QueueOrder:
    order = QueueOrder()
    for one in jobs:
        order.add(one)
    return order


def at(admit_seq: int, tenant: str = "t", priority: int = 1) -> PendingJob:
    made = job(admit_seq, tenant=tenant)
    return replace(
        made, admit_seq=admit_seq, priority=priority, prompt_tokens=TOKENS // 2, max_tokens=TOKENS // 2
    )


def test_positions_are_exact_through_comings_and_goings_over_many_blocks() -> None:
    rng = random.Random(7)
    jobs = [at(seq, rng.choice("ab"), rng.randrange(3)) for seq in rng.sample(range(5 * BLOCK_JOBS), 600)]
    order = order_of(*jobs)
    for gone in jobs[400:]:
        order.remove(gone)
    waiting = sorted(jobs[:400], key=lambda one: (one.priority, one.admit_seq))

    assert [order.before(one) for one in waiting] == [Ahead(n, n * TOKENS) for n in range(400)]
    assert order.tokens == 400 * TOKENS
    for gone in jobs[:400]:
        order.remove(gone)
    assert (order.tokens, order.queued("a"), order.queued("b")) == (0, Ahead(0, 0), Ahead(0, 0))


@pytest.mark.parametrize(
    ("weights", "ahead"),
    [(None, 104), ({}, 8), ({"small": 4.0}, 5), ({"flood": 3.0}, 16), ({"small": 0.01}, 104)],
    ids=["by admission", "equal", "four times the flood's", "a third of it", "next to nothing"],
)
def test_behind_a_flood_a_tenant_waits_for_its_share_only(
    weights: dict[str, float] | None, ahead: int
) -> None:
    flood = [at(seq, "flood") for seq in range(100)]
    small = [at(100 + seq, "small") for seq in range(5)]
    order = order_of(*flood, *small)

    fluid = None if weights is None else order.fluid(weights)

    assert order.before(small[4], fluid) == Ahead(ahead, ahead * TOKENS)
    assert order.before(small[0], fluid).jobs == (100 if weights is None else 0)


def test_side_by_side_the_last_job_of_the_longest_queue_has_all_others_before_it() -> None:
    jobs = [at(seq, f"t{seq % 10}") for seq in range(100)] + [at(100, "t3")]
    order = order_of(*jobs)
    fluid = order.fluid({})

    assert order.before(jobs[-1], fluid) == Ahead(100, 100 * TOKENS)
    assert order.before(jobs[0], fluid) == Ahead(0, 0)
    assert order.before(jobs[57], fluid) == Ahead(50, 50 * TOKENS)
    assert fluid.weight == 10.0


def test_a_backlog_keeps_the_order_of_what_waits() -> None:
    first, suspect, last = job(1), job(2, group=9), job(3)
    backlog = backlog_of(first, suspect, last)
    backlog.add(first)

    assert backlog.order.before(last).jobs == 2
    backlog.take(suspect.job_id)
    backlog.take(suspect.job_id)
    assert backlog.order.before(last).jobs == 1
