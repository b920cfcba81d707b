"""The pace of jobs, from those that ended."""

from __future__ import annotations

import pytest

from scheduler.policies import JobPace


def test_it_is_unknown_until_a_job_has_ended() -> None:
    assert JobPace().tokens_per_s is None


def test_what_ends_together_needs_no_time_between_ends() -> None:
    pace = JobPace()
    for _ in range(8):
        pace.observe(100, 10.0, now=50.0)

    assert pace.tokens_per_s == pytest.approx(10.0)


def test_a_lull_forgets_nothing_and_later_ends_count_more() -> None:
    pace = JobPace()
    pace.observe(100, 10.0, now=0.0)
    assert pace.tokens_per_s == pytest.approx(10.0)

    pace.observe(100, 5.0, now=1e6)
    assert pace.tokens_per_s == pytest.approx(20.0)


def test_a_job_that_took_no_time_leaves_a_number() -> None:
    pace = JobPace()
    pace.observe(1, 0.0, now=0.0)
    pace.observe(100, 10.0, now=0.0)

    assert pace.tokens_per_s == pytest.approx(10.1, rel=0.01)
