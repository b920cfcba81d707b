"""A soak's plan follows from its seed, and holds enough of everything."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tests.soak.hooks import POINTS
from tests.soak.plan import KILLED, SHARES, STOPS_S, make_plan, requests


def test_a_seed_gives_one_plan() -> None:
    assert make_plan(300, 20, seed=4) == make_plan(300, 20, seed=4)
    assert make_plan(300, 20, seed=4) != make_plan(300, 20, seed=5)


def test_two_of_a_hundred_jobs_or_more_are_of_each_kind_whatever_the_number() -> None:
    for jobs in (300, 2000):
        kinds = Counter(job.kind for job in make_plan(jobs, 0, seed=1).jobs)

        assert set(kinds) == {"plain", *SHARES}
        assert all(count >= 0.02 * jobs for count in kinds.values())
        assert sum(kinds.values()) == jobs


def test_each_hook_point_and_each_restart_comes_five_times_in_a_full_run() -> None:
    faults = make_plan(100_000, 140, seed=1).faults
    kinds = Counter(fault.kind for fault in faults)
    points = Counter(fault.target for fault in faults if fault.kind == "hook")

    assert all(points[point.name] >= 5 for point in POINTS)
    assert kinds["hook"] + kinds["kill"] == 140
    assert kinds["restart_redis"] >= 5
    assert kinds["restart_postgres"] >= 5
    assert kinds["flush_redis"] == kinds["rolling_restart"] == 1


def test_every_kind_of_process_is_killed_and_stopped_for_shorter_and_longer_than_a_lease() -> None:
    faults = make_plan(100_000, 140, seed=1).faults
    kills = Counter(fault.target for fault in faults if fault.kind == "kill")
    stops = Counter((fault.target, fault.for_s) for fault in faults if fault.kind == "stop")

    assert all(kills[kind] >= 5 for kind in KILLED)
    assert set(stops) == {(kind, for_s) for kind in KILLED for for_s in STOPS_S}
    assert min(stops.values()) >= 3


def test_a_killed_worker_has_quiet_before_and_after_it() -> None:
    faults = make_plan(100_000, 140, seed=1).faults
    gaps = [(after.at_job - before.at_job, {before, after}) for before, after in pairwise(faults)]
    beside = [gap for gap, pair in gaps if any((one.kind, one.target) == ("kill", "worker") for one in pair)]

    assert len(beside) >= 20
    assert min(beside) >= 2.9 * min(gap for gap, _ in gaps)


def test_faults_come_in_the_order_of_jobs_and_leave_some_to_suffer_from_the_last() -> None:
    faults = make_plan(1000, 20, seed=1).faults

    assert all(before.at_job <= after.at_job for before, after in pairwise(faults))
    assert faults[0].at_job >= 50
    assert faults[-1].at_job < 900


def test_every_job_asks_for_one_of_the_requests_whose_answer_is_computed() -> None:
    adapters = {request.name: request.adapter for request in requests()}

    for job in make_plan(1000, 0, seed=2).jobs:
        assert adapters[job.request] == job.adapter
        assert (job.other is not None) == (job.kind == "other_payload")
