"""Figures of a run: what a goal is held to, and what explains it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from benchmarks.policies.goals import Goal
from benchmarks.policies.simulator import Simulator
from benchmarks.policies.workload import Job


class Figure(NamedTuple):
    """A value that a goal is about; NaN if the policy gives none."""

    goal: Goal
    case: str
    value: float


class Measured(NamedTuple):
    """What one policy did with one workload."""

    workload: str
    policy: str
    tokens_per_s: float
    wait_p50_s: float
    wait_p99_s: float
    slot_gb: float
    store_gb: float
    score: float
    """What the workload is about: jobs in time or SLOs attained as a share, a gap by its bound, or NaN."""


class Loads(NamedTuple):
    """Bytes that all workers have loaded: into slots, and from the store."""

    slots: int
    store: int


class Found(NamedTuple):
    """What one workload of one seed gave."""

    figures: list[Figure]
    measured: list[Measured]


NOTHING: Final = Loads(0, 0)


def loads(simulator: Simulator) -> Loads:
    """Add up what was loaded so far."""
    tiers = [worker.residency for worker in simulator.workers]
    return Loads(sum(tier.slot_bytes for tier in tiers), sum(tier.store_bytes for tier in tiers))


def measure(
    workload: str,
    policy: str,
    simulator: Simulator,
    jobs: Sequence[Job],
    *,
    since: float = 0.0,
    before: Loads = NOTHING,
) -> Measured:
    """Measure a run by some of its jobs, from a time on."""
    ended = [job for job in jobs if job.ended_at is not None]
    waits = [job.started_at - job.submitted_at for job in jobs if job.started_at is not None]
    num_tokens = sum(job.prompt_tokens + job.output_tokens for job in ended)
    after = loads(simulator)
    has_deadlines = any(job.deadline_at is not None for job in jobs)
    until = max((job.ended_at for job in ended if job.ended_at is not None), default=since)
    return Measured(
        workload,
        policy,
        num_tokens / (until - since) if until > since else 0.0,
        percentile(waits, 0.5),
        percentile(waits, 0.99),
        (after.slots - before.slots) / 1e9,
        (after.store - before.store) / 1e9,
        share(job.is_in_time for job in jobs) if has_deadlines else math.nan,
    )


def share(values: Iterable[bool]) -> float:
    """Return the share of those that are true; 0 of none."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def percentile(values: Iterable[float], rank: float) -> float:
    """Return the value at a rank from 0 to 1; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(rank * len(ordered)))] if ordered else math.nan


def ratio(value: float, base: float) -> float:
    """Return how many times the base a value is; of nothing, nothing is once, anything infinitely often."""
    if base:
        return value / base
    return math.inf if value else 1.0
