"""What each stage of a job takes of a processor: `python -m benchmarks.plane.stages [--batch N] [--profile]`.

All stages run one after another in this one process, on real servers, in groups as large as a busy queue
has them. So neither a busy machine nor a stage that waits for another makes the groups smaller, and two
versions of the code can be compared while others compute. What recurs does so by processor time. Left out are
the wakeups of threads and the pipe to the engine.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Final

from benchmarks.plane.lorayard_jobs import BLOCK_JOBS, POOL, RESULT_TIMEOUT_S, add_adapters, jobs
from benchmarks.plane.stack import MODEL, Machine
from benchmarks.plane.worker_by_hand import INCARNATION, LEASE_S, WorkerParts, broken
from benchmarks.report import table
from lorayard import Client, as_completed
from lorayard.process.garbage import imports_are_done
from lorayard.process.logs import configure_logs
from scheduler.leader import Leader
from scheduler.process import Scheduler
from scheduler.settings import SchedulerSettings
from scheduler.term import TermKeeper

THREADS: Final = {"celery": "worker: Celery", "lorayard-replies": "producer: results"}
SHOWN: Final = 25
"""Functions of each stage in a profile."""


class Stages:
    """Mutable: what each stage has taken so far, here and in the servers."""

    def __init__(self, machine: Machine, *, is_profiled: bool) -> None:
        self._servers = {name: machine.stack.children[name].pid for name in ("redis", "postgres")}
        self._is_profiled = is_profiled
        self.spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.profiles: dict[str, cProfile.Profile] = defaultdict(lambda: cProfile.Profile(time.thread_time))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what this thread does inside, and the servers meanwhile, for a stage."""
        servers = self._read_servers()
        profile = self.profiles[name] if self._is_profiled else None
        own = time.thread_time()
        if profile is not None:
            profile.enable()
        try:
            yield
        finally:
            if profile is not None:
                profile.disable()
            self.spent[name]["own"] += time.thread_time() - own
            for place, spent in self._read_servers().items():
                self.spent[name][place] += spent - servers[place]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Count what this process's other threads do inside, for the stages that are theirs."""
        before = _thread_seconds()
        try:
            yield
        finally:
            for name, spent in _thread_seconds().items():
                self.spent[THREADS.get(name, "other threads")]["own"] += spent - before.get(name, 0.0)

    def _read_servers(self) -> dict[str, float]:
        return {name: sum(map(_running_s, _family(pid))) for name, pid in self._servers.items()}

    def report(self, number: int) -> str:
        """Lay out microseconds a job by stage and place."""
        rows = [["stage", "own code", "redis", "postgres"]]
        for name, spent in [*self.spent.items(), ("together", self._sums())]:
            rows.append(
                [name, *(f"{1e6 * spent[place] / number:.1f}" for place in ("own", "redis", "postgres"))]
            )
        total = sum(self._sums().values())
        return f"{table(rows)}\n\nAll together {1e6 * total / number:.0f} microseconds a job.\n"

    def _sums(self) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for spent in self.spent.values():
            for place, seconds in spent.items():
                sums[place] += seconds
        return sums


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _thread_seconds() -> dict[str, float]:
    """Read how long each thread of this process has run, but for the one that asks."""
    others = [one for one in threading.enumerate() if one is not threading.current_thread()]
    return {one.name: _running_s(f"self/task/{one.native_id}") for one in others}


def _running_s(process: int | str) -> float:
    """Read for how long a process or thread has run, to the nanosecond; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def run(machine: Machine, folder: Path, number: int, stages: Stages) -> None:
    """Bring so many jobs from submit to result."""
    add_adapters(machine.database_url)
    scheduler = Scheduler(SchedulerSettings(), clock=time.process_time)
    keeper = TermKeeper.take(scheduler._terms, POOL, INCARNATION, LEASE_S, on_broken=broken)
    assert keeper is not None, "nobody else leads"
    leader = scheduler._leader(keeper)
    leader.recover()
    worker = WorkerParts(machine, folder)
    leader.recover()
    with Client(machine.redis_url) as client:
        while not client.adapters():
            leader.turn()
        serve(leader, scheduler, worker, client, 512, Stages(machine, is_profiled=False))
        with stages.beside():
            serve(leader, scheduler, worker, client, number, stages)
    worker.celery.stop()


def serve(
    leader: Leader, scheduler: Scheduler, worker: WorkerParts, client: Client, number: int, stages: Stages
) -> None:
    """Submit all, then let scheduler and worker take turns until nothing is left."""
    described = jobs(number)
    handles = []
    for first in range(0, number, BLOCK_JOBS):
        with stages.timed("producer: submit"):
            handles += client.submit_many(described[first : first + BLOCK_JOBS])
    ended = worker.attempts.num_succeeded + number
    while worker.attempts.num_succeeded < ended:
        with stages.timed("scheduler: turn"):
            leader.turn()
        with stages.timed("scheduler: show"):
            scheduler._flower._notes.show(scheduler._flower._thread)
        _await(lambda: len(worker.attempts) == _num_outstanding(leader))
        worker.serve(stages.timed)
    with stages.timed("producer: results"):
        for handle in as_completed(handles, timeout=RESULT_TIMEOUT_S):
            assert handle.result().completion_tokens == 1


def _num_outstanding(leader: Leader) -> int:
    return sum(len(worker.outstanding) for worker in leader.fleet.ready())


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RESULT_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("micro-batches were sent and have not arrived")
        time.sleep(0.005)


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plane.stages", description=__doc__)
    parser.add_argument("--jobs", type=int, default=4000, help="at most 9,000: replies wait for the end")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="print where each stage's time goes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorayard-stages-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with Machine(folder, durable=False) as machine:
            os.environ |= machine.stack.client_env() | {
                "LORAYARD_MODEL": str(MODEL),
                "LORAYARD_AUTO_TENANTS": "true",
                "LORAYARD_MAX_BATCH_JOBS": str(given.batch),
            }
            stages = Stages(machine, is_profiled=given.profile)
            with (folder / "log").open("w") as log, redirect_stderr(log):
                configure_logs(process="stages")
                imports_are_done()
                run(machine, folder, given.jobs, stages)
    print(stages.report(given.jobs))
    for stage, profile in stages.profiles.items():
        print(f"== {stage}")
        pstats.Stats(profile).sort_stats("tottime").print_stats(SHOWN)
        pstats.Stats(profile).sort_stats("cumtime").print_stats(2 * SHOWN)


if __name__ == "__main__":
    main()
