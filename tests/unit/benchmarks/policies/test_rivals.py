"""Each rival does what its published rule says, where that is known."""

from __future__ import annotations

from benchmarks.policies.belady import least_bytes
from benchmarks.policies.policy import Policy
from benchmarks.policies.rivals.dlora import SPEED_RATE, DLoRA
from benchmarks.policies.rivals.edf import ClairvoyantEdf
from benchmarks.policies.rivals.fifo import Fifo, FifoLru
from benchmarks.policies.rivals.slora import NUM_ADAPTERS, SLoRA
from benchmarks.policies.workload import Job
from scheduler.policies import WorkerView
from tests.unit.benchmarks.policies.making import SIZE, adapter, job, pool, setting, simulate, view


def chosen(policy: Policy, jobs: list[Job], shown: WorkerView) -> list[int]:
    for one in jobs:
        policy.add(one, 0.0)
    return [one.number for dispatch in policy.plan([shown], 0.0) for one in dispatch.jobs]


def test_fifo_lets_nobody_overtake_a_job_without_a_slot() -> None:
    jobs = [job(1, "a", 1), job(2, "b", 1), job(3, "a", 1)]

    assert chosen(Fifo(setting()), jobs, view(room=3)) == [1]


def test_vllms_rule_passes_over_one_adapter_too_many() -> None:
    jobs = [job(1, "a", 1), job(2, "b", 1), job(3, "a", 1)]

    assert chosen(FifoLru(setting()), jobs, view(room=3)) == [1, 3]


def test_slora_fills_up_from_its_batch_once_that_has_so_many_adapters() -> None:
    jobs = [job(1, "new", 1), job(2, "0", 1)]
    batch = {str(number): 1 for number in range(NUM_ADAPTERS)}
    fewer = {str(number): 1 for number in range(NUM_ADAPTERS - 1)}

    assert chosen(SLoRA(setting()), jobs, view(batch, room=1, slots=16)) == [2]
    assert chosen(SLoRA(setting()), jobs, view(batch, room=2, slots=16)) == [2, 1]
    assert chosen(SLoRA(setting()), jobs, view(fewer, room=1, slots=16)) == [1]


def test_slora_stops_at_the_first_job_that_does_not_fit() -> None:
    jobs = [job(1, "a", 1), job(2, "b", 1), job(3, "a", 1)]

    assert chosen(SLoRA(setting()), jobs, view(room=3)) == [1]


def test_dlora_serves_the_longest_queue_alone_and_pays_the_displaced() -> None:
    policy = DLoRA(setting())
    before = dict(policy.engines["worker-0000"].credit)

    assert chosen(policy, [job(1, "b", 1), *(job(number, "a", 1) for number in (2, 3, 4))], view()) == [2, 3]

    engine, cost = policy.engines["worker-0000"], 1 / 2 / SPEED_RATE
    assert engine.merged == "a"
    assert engine.credit == {"a": before["a"] - cost, "b": before["b"] + cost}


def test_dlora_mixes_where_no_queue_outweighs_the_batch() -> None:
    jobs = [job(1, "b", 1), job(2, "a", 1), job(3, "c", 1)]

    assert chosen(DLoRA(setting("abc", slots=3)), jobs, view(slots=3)) == [1, 2]


def test_dlora_serves_those_with_much_credit_first() -> None:
    policy = DLoRA(setting())
    policy.engines["worker-0000"].credit["b"] = 2e4

    assert chosen(policy, [job(1, "a", 1), job(2, "a", 1), job(3, "b", 1)], view(slots=2)) == [3, 1]


def test_the_clairvoyant_takes_the_earliest_deadline_that_can_be_kept() -> None:
    jobs = [
        job(1, "a", 3, deadline=9.0),
        job(2, "a", 3, deadline=2.9),
        job(3, "a", 3, deadline=5.0),
        job(4, "a", 3),
    ]

    assert chosen(ClairvoyantEdf(setting()), jobs, view()) == [3, 1]


def test_the_clairvoyant_keeps_deadlines_that_fifo_misses() -> None:
    def jobs() -> list[Job]:
        return [*(job(number, "a", 5, deadline=30.0) for number in (1, 2, 3)), job(4, "a", 2, deadline=8.0)]

    kept = {
        make: sum(one.is_in_time for one in simulate(pool(max_num_seqs=1), make, jobs()).ended)
        for make in (Fifo, ClairvoyantEdf)
    }

    assert kept == {Fifo: 3, ClairvoyantEdf: 4}


def test_engines_rules_send_a_job_to_the_shortest_queue() -> None:
    jobs = [job(number, "a", 3) for number in (1, 2, 3)]

    simulate(pool(num_workers=2, host_adapters=2), FifoLru, jobs, names="aa")

    assert [one.worker for one in jobs] == [0, 1, 0]


def test_belady_has_the_textbooks_faults() -> None:
    order = [adapter(str(page)) for page in (1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5)]

    assert least_bytes(order, 3) == 7 * SIZE
    assert least_bytes(order, 4) == 6 * SIZE
    assert least_bytes(order, 3, warm=[adapter("1"), adapter("9")]) == 6 * SIZE


def test_belady_by_bytes_lets_a_small_adapter_go_before_a_large_one() -> None:
    large, small, other = adapter("large", 100), adapter("small", 1), adapter("other", 1)

    # By distance alone the large one would leave, and be loaded again.
    assert least_bytes([large, small, other, small, large], 2) == 100 + 1 + 1 + 1
