"""What the queue itself costs: `python -m benchmarks.plane [--jobs N] [--rounds N] [--write NAME]`.

The engine answers at once, everything else is real: rows, usage, events, results to their producer. Beside
Lorayard stand plain Celery and the floor, which is what our own SQL and messages would cost with nothing of
ours between. All take turns on the same servers, so that a slow minute hits all alike. The exit status is 1
if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
from redis import Redis

from benchmarks.figures import Figure, verdicts
from benchmarks.machine import describe_run, load_average
from benchmarks.plane import floor, lorayard_jobs, plain_celery, probes
from benchmarks.plane.figures import Run, where_time_goes
from benchmarks.plane.stack import Machine
from lorayard.local import plain_url

RESULTS: Final = Path(__file__).parents[1] / "results"
OURS, CELERY, FLOOR, NO_FLOWER = "lorayard", "plain Celery", "floor", "lorayard, Flower off"


class Goals(NamedTuple):
    """What a micro-batch of some size should reach."""

    jobs_per_s: float
    of_celery: float
    of_floor: float = 0.5


GOALS: Final = {1: Goals(1000, 1.0), 16: Goals(4000, 3.0), 64: Goals(8000, 8.0)}
SUBMITS_PER_S: Final = 25_000
IDLE_P50_MS, IDLE_P99_MS = 15.0, 50.0
ADD_ADAPTER_MS: Final = 5.0
MAX_EVENTS_PER_S: Final = 6000.0
"""The budget of one process; here a scheduler and a worker send them."""

MAX_SCHEDULER_MB: Final = 400.0
"""As much as 200,000 headers and a scheduler itself, whatever else waits."""


class Options(NamedTuple):
    """How much is measured."""

    num_jobs: int
    num_rounds: int
    num_idle: int
    num_queued: int
    num_backlog: int
    num_adapters: int
    batches: Sequence[int]


def measure(machine: Machine, options: Options) -> tuple[list[Run], list[Figure]]:
    """Let all systems take their turns, then ask the single questions."""
    lorayard_jobs.add_adapters(machine.database_url)
    runs = [run for number in range(options.num_rounds) for run in _round(machine, options, number)]
    with lorayard_jobs.serving(machine, batch=64) as client:
        figures = _compare(runs, options)
        idle = probes.idle_latencies(client, options.num_idle)
        figures += _latency_figures(idle)
        shown = probes.shown_in_flower(machine, client, options.num_jobs)
        figures += [
            Figure("jobs shown in Flower at micro-batch 64", 100 * shown.share, "%"),
            Figure("their task events", shown.events_per_s, "events/s", most=2 * MAX_EVENTS_PER_S),
        ]
        figures += _submit_figures(*probes.submit_rate(client, options.num_jobs))
        probes.fill_adapters(machine, options.num_adapters)
        blocked_ms = probes.add_adapter(machine, "one-more")
        name = f"Redis held up by an adapter added to {options.num_adapters:,}, at most"
        figures.append(Figure(name, blocked_ms, "ms", most=ADD_ADAPTER_MS))
    per_job = probes.bytes_per_queued_job(options.num_queued)
    figures.append(Figure(f"memory of a queued job, of {options.num_queued:,}", per_job, "bytes", most=1000))
    return runs, figures + _backlog_figures(machine, options)


def _backlog_figures(machine: Machine, options: Options) -> list[Figure]:
    _forget(machine)
    short = probes.dispatch_from(machine, 2 * options.num_jobs, options.num_jobs)
    _forget(machine)
    long = probes.dispatch_from(machine, options.num_backlog, options.num_jobs)
    waiting = f"with {options.num_backlog:,} jobs waiting"
    return [
        Figure(
            f"dispatched {waiting}, of what it is with few",
            long.jobs_per_s / short.jobs_per_s,
            "x",
            least=0.8,
        ),
        Figure(f"scheduler's memory {waiting}", long.memory_bytes / 1e6, "MB", most=MAX_SCHEDULER_MB),
    ]


def _round(machine: Machine, options: Options, number: int) -> Iterator[Run]:
    order = list(options.batches) if number % 2 == 0 else list(reversed(options.batches))
    yield _celery(machine, options.num_jobs)
    for batch in order:
        yield _ours(machine, batch, options.num_jobs)
        yield _floor(machine, batch, options.num_jobs)
    yield _ours(machine, order[-1], options.num_jobs, flower=False)


def _ours(machine: Machine, batch: int, num_jobs: int, *, flower: bool = True) -> Run:
    _forget(machine)
    with lorayard_jobs.serving(machine, batch=batch, flower=flower) as client:
        before = machine.spent()
        seconds = lorayard_jobs.run(client, num_jobs)
        spent = machine.spent().since(before)
    return _told(Run(OURS if flower else NO_FLOWER, batch, num_jobs, seconds, spent))


def _floor(machine: Machine, batch: int, num_jobs: int) -> Run:
    _forget(machine)
    with machine.only():
        floor.start(machine, batch)
        floor.run(machine, 256)
        before = machine.spent()
        seconds = floor.run(machine, num_jobs)
        spent = machine.spent().since(before)
    _forget(machine)
    return _told(Run(FLOOR, batch, num_jobs, seconds, spent))


def _celery(machine: Machine, num_jobs: int) -> Run:
    with machine.only():
        producer = plain_celery.start(machine, "prefork")
        before = machine.spent()
        seconds = plain_celery.run(producer, num_jobs)
        spent = machine.spent().since(before)
        producer.close()
    return _told(Run(CELERY, 1, num_jobs, seconds, spent))


def _forget(machine: Machine) -> None:
    """Empty ledger and streams but for the adapters, so that every run begins alike."""
    with psycopg.connect(plain_url(machine.database_url), autocommit=True) as connection:
        connection.execute(
            "TRUNCATE jobs, job_inputs, job_outputs, job_keys, attempts, usage_deltas, workers, "
            "worker_leases, worker_hosts, scheduler_terms CASCADE"
        )
    with Redis.from_url(machine.redis_url, protocol=2) as redis:
        redis.flushdb()


def _told(run: Run) -> Run:
    print(
        f"{run.system}, micro-batch {run.batch}: {run.jobs_per_s:.0f} jobs/s, {run.us_per_job:.0f} us a job; "
        f"load {load_average()}",
        flush=True,
    )
    return run


def _median(runs: Sequence[Run], system: str, batch: int) -> Run:
    found = sorted(
        (run for run in runs if (run.system, run.batch) == (system, batch)), key=lambda run: run.jobs_per_s
    )
    return found[len(found) // 2]


def _compare(runs: Sequence[Run], options: Options) -> list[Figure]:
    figures = []
    celery = _median(runs, CELERY, 1)
    for batch in options.batches:
        ours, least, goals = _median(runs, OURS, batch), _median(runs, FLOOR, batch), GOALS[batch]
        name = f"micro-batch {batch}"
        figures += [
            Figure(name, ours.jobs_per_s, "jobs/s", least=goals.jobs_per_s),
            Figure(f"{name}, of the floor", ours.jobs_per_s / least.jobs_per_s, "x", least=goals.of_floor),
            Figure(
                f"{name}, of plain Celery", ours.jobs_per_s / celery.jobs_per_s, "x", least=goals.of_celery
            ),
            Figure(f"{name}, floor's processor time of ours", least.us_per_job / ours.us_per_job, "x"),
            Figure(
                f"{name}, plain Celery's processor time of ours", celery.us_per_job / ours.us_per_job, "x"
            ),
        ]
    return figures


def _latency_figures(idle: Sequence[probes.Latency]) -> list[Figure]:
    together = [one.together_ms for one in idle]
    to_engine, to_result = [one.to_engine_ms for one in idle], [one.to_result_ms for one in idle]
    return [
        Figure("idle, submit to engine, median", statistics.median(to_engine), "ms"),
        Figure("idle, finish to result, median", statistics.median(to_result), "ms"),
        Figure("idle, together, median", statistics.median(together), "ms", most=IDLE_P50_MS),
        Figure("idle, together, 99 of 100", probes.percentile(together, 99), "ms", most=IDLE_P99_MS),
    ]


def _submit_figures(per_s: float, per_own_s: float) -> list[Figure]:
    return [
        Figure("submitted by one producer", per_s, "jobs/s", least=SUBMITS_PER_S),
        Figure("submitted in a second of its processor time", per_own_s, "jobs"),
    ]


def report(runs: Sequence[Run], figures: Sequence[Figure], facts: dict[str, str]) -> str:
    """Lay everything out as markdown."""
    shown = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    reading = (
        "Processor time by process, in microseconds a job; jobs/s are by the clock, on a machine that others "
        "may use at the same time, processor time is not touched by them."
    )
    title = "# What the queue costs a job"
    return "\n\n".join([title, shown, verdicts(figures), reading, where_time_goes(runs)]) + "\n"


def main() -> int:
    """Run and print, and write the report if asked to; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plane", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="of all systems by turns; medians count")
    parser.add_argument("--idle", type=int, default=300, help="jobs submitted one at a time")
    parser.add_argument("--queued", type=int, default=200_000, help="jobs in the scheduler's memory")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="jobs waiting in the ledger")
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--batches", type=int, nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--durable", action="store_true", help="Postgres and Redis write to disk in earnest")
    parser.add_argument("--write", metavar="NAME", help="keep the report in benchmarks/results")
    given = parser.parse_args()
    options = Options(
        given.jobs, given.rounds, given.idle, given.queued, given.backlog, given.adapters, given.batches
    )
    facts = describe_run(["Celery 5.7", "Postgres 18"], num_threads=1)
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="lorayard-plane-") as folder:
        Path(folder).chmod(0o711)
        with Machine(Path(folder), durable=given.durable) as machine:
            runs, figures = measure(machine, options)
    facts["load before and after"] = f"{before}, {load_average()}"
    facts["jobs of a run"] = f"{options.num_jobs:,}, {options.num_rounds} rounds by turns; medians"
    text = report(runs, figures, facts)
    print(text)
    if given.write:
        (RESULTS / f"{given.write}.md").write_text(text)
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
