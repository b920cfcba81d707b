"""The reference workload is the same for every system, and new in every round."""

from __future__ import annotations

from collections import Counter

from benchmarks.rivals.protocol import Job
from benchmarks.workload import Workload


def test_every_system_gets_the_same_prompts_and_every_round_new_ones() -> None:
    first = Workload(8).prompts(0)

    assert first == Workload(0).prompts(0)
    assert [len(prompt) for prompt in first] == [32] * 32
    assert not {tuple(prompt) for prompt in first} & {tuple(prompt) for prompt in Workload(8).prompts(1)}


def test_adapters_are_spread_evenly_and_base_requests_have_none() -> None:
    assert set(Counter(Workload(8).adapter_of(request) for request in range(32)).values()) == {4}
    assert Workload(0).adapter_of(5) is None


def test_a_job_survives_the_command_line() -> None:
    job = Job("base", ["one", "two"], Workload(2, num_new_tokens=5), 2, is_compiled=True)

    assert Job.from_json(job.to_json()) == job
