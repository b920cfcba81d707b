"""Measures how long jobs waited after a kill: from the kill to the start of the next attempt."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple
from uuid import UUID

from tests.soak.audit.evidence import AttemptRow, Evidence, Record

ALONE_S = 30.0
WORKER_TARGETS = ("worker", "engine")


class Recoveries(NamedTuple):
    """Seconds; `alone` are those of workers with no other fault near, each also in `all`."""

    alone: list[float]
    all: list[float]
    slowest: dict[str, float]  # by what was killed, the longest wait


def measure(evidence: Evidence) -> Recoveries:
    """Measure every kill that held up an attempt."""
    starts = _starts(evidence)
    in_order = sorted(at for attempts in starts.values() for at in attempts.values())
    by_job: dict[UUID, list[AttemptRow]] = defaultdict(list)
    for attempt in evidence.attempts:
        by_job[attempt.job_id].append(attempt)
    found = Recoveries([], [], {})
    for kill in (fault for fault in evidence.faults if fault["kind"] == "kill"):
        if kill["target"] in WORKER_TARGETS:
            waits = _after_worker(kill, evidence, by_job, starts)
            if _is_alone(kill, evidence.faults):
                found.alone.extend(waits)
        else:
            # Whoever it was, how long did no attempt begin?
            waits = (
                [next(at - kill["at"] for at in in_order if at >= kill["at"])]
                if _later(in_order, kill)
                else []
            )
        found.all.extend(waits)
        name = str(kill.get("point", kill["target"]))
        found.slowest[name] = max([found.slowest.get(name, 0.0), *waits])
    return found


def _starts(evidence: Evidence) -> dict[UUID, dict[int, float]]:
    submitted = {job.job_id: job.submitted_at.timestamp() for job in evidence.jobs}
    starts: dict[UUID, dict[int, float]] = defaultdict(dict)
    for attempt in evidence.attempts:
        if attempt.queue_ms is not None:
            starts[attempt.job_id][attempt.attempt] = submitted[attempt.job_id] + attempt.queue_ms / 1000
    return starts


def _after_worker(
    kill: Record,
    evidence: Evidence,
    by_job: dict[UUID, list[AttemptRow]],
    starts: dict[UUID, dict[int, float]],
) -> list[float]:
    """Measure each job that the killed incarnation had in hand."""
    part = kill.get("part") or ""
    incarnations = [
        worker["incarnation"]
        for worker in evidence.workers
        if worker["hostname"].startswith(f"{part}-") and worker["registered_at"].timestamp() <= kill["at"]
    ]
    waits = []
    for job_id, attempts in by_job.items():
        for attempt in attempts:
            was_held = attempt.incarnation in incarnations[-1:] and attempt.ended in ("lost", "released")
            if was_held and attempt.ended_at.timestamp() >= kill["at"]:
                later = [at for number, at in starts[job_id].items() if number > attempt.attempt]
                waits += [min(later) - kill["at"]] if later else []
    return waits


def _is_alone(kill: Record, faults: list[Record]) -> bool:
    at = kill["at"]
    return not any(
        fault is not kill and fault["at"] <= at + ALONE_S and fault.get("until", fault["at"]) >= at - ALONE_S
        for fault in faults
    )


def _later(in_order: list[float], kill: Record) -> bool:
    return bool(in_order) and in_order[-1] >= kill["at"]
