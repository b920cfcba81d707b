"""The matrix gives a figure for every goal, and the report holds each to its limit."""

from __future__ import annotations

import math
from functools import partial

import pytest

from benchmarks.policies import goals
from benchmarks.policies.forecasts import decisions, forecasts
from benchmarks.policies.goals import Goal, Matrix, Pool
from benchmarks.policies.measures import Figure, Found, Measured, percentile, ratio
from benchmarks.policies.report import judge, to_markdown
from benchmarks.policies.scenarios import deadlines, quiet, slo, standing
from benchmarks.policies.tenants import MIXES, flood, service_gap

POOL = Pool(num_workers=2, max_num_seqs=2, kv_tokens=3_000, slots=2, host_adapters=2, num_adapters=6)
TINY = Matrix(pool=POOL, standing_jobs=24, arriving_jobs=24, slo_trials=1, flood_jobs=60)


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return [
        standing(1, TINY, skew=0.6),
        quiet(1, TINY, skew=0.6),
        deadlines(1, TINY, load=0.9, cv=2.0),
        slo(1, TINY, cv=1.0),
        *(service_gap(1, TINY, has_change=has_change) for has_change in (False, True)),
        *(flood(1, TINY, mix=mix) for mix in list(MIXES)[:1]),
        forecasts(1, TINY, load=1.0),
        decisions(TINY, queued=(30, 60), num_jobs=10),
    ]


def test_every_goal_has_a_figure(found: list[Found]) -> None:
    asked = {value for value in vars(goals).values() if isinstance(value, Goal)}

    assert {figure.goal for one in found for figure in one.figures} == asked


def test_what_was_measured_is_in_the_report(found: list[Found]) -> None:
    measured = [row for one in found for row in one.measured]

    report = to_markdown("Title", {"commit": "abc"}, judge(f for one in found for f in one.figures), measured)

    for workload, policy in {(row.workload, row.policy) for row in measured}:
        assert any(workload in line and policy in line for line in report.splitlines())
    assert "- commit: abc" in report


def test_a_goal_is_met_by_median_and_worst_of_all_seeds() -> None:
    most, least = Goal("most", 2.0, "x"), Goal("least", 2.0, "x", is_floor=True)
    figures = [
        *(Figure(most, "all", value) for value in (1.0, 1.5, 2.0)),
        *(Figure(most, "one too many", value) for value in (1.0, 1.5, 2.1)),
        *(Figure(least, "all", value) for value in (3.0, 2.0, 2.5)),
        *(Figure(least, "one too few", value) for value in (3.0, 1.9, 2.5)),
        *(Figure(most, "not given", value) for value in (1.0, math.nan, 1.0)),
    ]

    judged = judge(figures)

    assert [(one.case, one.is_met) for one in judged] == [
        ("all", True),
        ("one too many", False),
        ("all", True),
        ("one too few", False),
        ("not given", False),
    ]
    assert [(one.middle, one.worst) for one in judged[:4]] == [(1.5, 2.0), (1.5, 2.1), (2.5, 2.0), (2.5, 1.9)]
    report = to_markdown("Title", {}, judged, [Measured("w", "p", 1, 1, 1, 1, 1, math.nan)])
    assert "Goals: 2 of 5 met" in report
    assert sum("| NO" in line for line in report.splitlines()) == 3
    assert any("not given" in line and "NO" in line for line in report.splitlines())


def test_the_same_seed_gives_the_same_figures() -> None:
    run = partial(deadlines, 5, TINY, load=1.1, cv=4.0)

    assert run().figures == run().figures
    assert run().figures != deadlines(6, TINY, load=1.1, cv=4.0).figures


def test_ratios_to_nothing_and_percentiles_of_nothing() -> None:
    assert [ratio(1, 2), ratio(0, 0), ratio(1, 0)] == [0.5, 1.0, math.inf]
    assert math.isnan(percentile([], 0.5))
    assert [percentile([3, 1, 2], rank) for rank in (0.0, 0.5, 0.99)] == [1, 2, 3]
