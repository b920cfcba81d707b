"""Lengths are learned per adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.policies import OutputLengths, plan
from scheduler.policies.output_length import MAX_ADAPTERS, MEMORY_JOBS
from tests.unit.scheduler.policies.making import CAPACITY, backlog_of, job, numbers, worker


def test_an_unknown_adapter_is_expected_to_write_all_that_it_may() -> None:
    lengths = OutputLengths()

    assert lengths.expected(job(1, "a", max_tokens=100)) == 100
    assert lengths.at_most(job(1, "a", max_tokens=100)) == 100
    assert lengths.prompt_tokens(job(1, "a", prompt_tokens=7)) == 7


def test_what_jobs_wrote_and_how_long_their_prompts_were_is_learned_per_adapter() -> None:
    lengths = OutputLengths()
    for _ in range(400):
        lengths.learn(job(1, "short", prompt_tokens=10, max_tokens=100), 15, 8)

    assert lengths.expected(job(1, "short", max_tokens=100)) == pytest.approx(8, rel=0.15)
    assert lengths.expected(job(1, "short", max_tokens=4)) == 4
    assert lengths.at_most(job(1, "short", max_tokens=100)) < 12
    assert lengths.prompt_tokens(job(1, "short", prompt_tokens=20)) == pytest.approx(30)
    assert lengths.expected(job(1, "other", max_tokens=100)) == 100


def test_outputs_that_are_a_share_of_what_was_asked_for_are_expected_to_be_that() -> None:
    lengths = OutputLengths()
    for asked in [40, 400] * 100:
        lengths.learn(job(1, "a", max_tokens=asked), 10, asked // 2)

    assert lengths.expected(job(1, "a", max_tokens=40)) == pytest.approx(20, rel=0.1)
    assert lengths.expected(job(1, "a", max_tokens=400)) == pytest.approx(200, rel=0.1)


def test_the_latest_count_most_and_those_that_wrote_nothing_for_nothing() -> None:
    lengths = OutputLengths()
    for written in [90] * MEMORY_JOBS + [10] * 5 * MEMORY_JOBS + [0] * 50:
        lengths.learn(job(1, "a", max_tokens=100), 10, written)

    assert lengths.expected(job(1, "a", max_tokens=100)) == pytest.approx(11, abs=1.5)


def test_lengths_that_vary_have_a_wide_bound() -> None:
    lengths = OutputLengths()
    for written in [5, 95] * 100:
        lengths.learn(job(1, "a", max_tokens=1_000), 10, written)

    assert lengths.at_most(job(1, "a", max_tokens=1_000)) >= 95


def test_adapters_that_were_not_heard_of_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.policies.output_length.MAX_ADAPTERS", 2)
    lengths = OutputLengths()
    for name in ("a", "b", "a", "c"):
        lengths.learn(job(1, name, max_tokens=100), 10, 1)

    assert len(lengths) == 2
    assert lengths.expected(job(1, "b", max_tokens=100)) == 100
    assert MAX_ADAPTERS == 100_000


def test_a_cache_holds_more_jobs_once_they_are_known_to_be_short() -> None:
    tight = replace(CAPACITY, kv_tokens=300)
    backlog = backlog_of(*(job(n, max_tokens=100) for n in range(8)))
    for _ in range(100):
        backlog.fairness.lengths.learn(job(1, max_tokens=100), 10, 5)

    [batch] = plan(backlog, [worker(capacity=tight)], 0.0)

    assert len(numbers(batch)) == 8
