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
import pickle
import pstats
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Final

from benchmarks.plane.instant_engine import KV_BLOCKS, InstantEngine
from benchmarks.plane.lorayard_jobs import BLOCK_JOBS, POOL, RESULT_TIMEOUT_S, add_adapters, jobs
from benchmarks.plane.stack import MODEL, Machine
from benchmarks.report import table
from db.database import MAX_HOLD_MS, Database
from db.records import WorkerLimits
from db.repositories.workers import WorkerRepository
from lorayard import Client, as_completed
from lorayard.contract.keys import PoolKeys
from lorayard.process.garbage import imports_are_done
from lorayard.process.logs import configure_logs
from lorayard.server.celery_app import make_app
from lorayard.server.flower_events import JobEvents
from lorayard.transport.connections import for_service
from scheduler.leader import Leader
from scheduler.process import Scheduler
from scheduler.settings import SchedulerSettings
from scheduler.term import TermKeeper
from workers.attempts import AttemptTable
from workers.celery_worker import CeleryWorker
from workers.committer import Committer
from workers.engine.serving.messages import Command, EngineEvents
from workers.engine_host import EngineHost
from workers.engine_status import Capacity, EngineStatus
from workers.engine_watch import ProgressLimit
from workers.event_builder import WorkerEventBuilder
from workers.event_publisher import EventPublisher
from workers.ledger_health import LedgerHealth
from workers.requests import AdapterIds
from workers.result_ledger import PostgresLedger
from workers.spill import Spill
from workers.tasks import define_tasks

INCARNATION: Final = "stages"
MAX_SEQS: Final = 256
LEASE_S: Final = 86_400.0
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
    def timed(self, name: str, others: str = "") -> Iterator[None]:
        """Count what is done inside for a stage, and what this process's `others` do meanwhile for theirs."""
        servers = self._read_servers()
        profile = self.profiles[name] if self._is_profiled else None
        own, process = time.thread_time(), time.process_time()
        if profile is not None:
            profile.enable()
        try:
            yield
        finally:
            if profile is not None:
                profile.disable()
            own = time.thread_time() - own
            elsewhere = time.process_time() - process - own
            self.spent[name]["own"] += own
            self.spent[others or name]["own"] += elsewhere
            for place, spent in self._read_servers().items():
                self.spent[name][place] += spent - servers[place]

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


def _running_s(pid: int) -> float:
    """Read for how long a process has run, to the nanosecond; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


class LoopedEngine:
    """An instant engine in this process, with the pickling of the pipe to one in another."""

    def __init__(self) -> None:
        self._engine = InstantEngine(MAX_SEQS)
        self._events: deque[bytes] = deque()

    @property
    def has_events(self) -> bool:
        """Whether something is there to be received."""
        return bool(self._events)

    def send(self, *commands: Command) -> None:
        """Take commands and answer them."""
        received = pickle.loads(pickle.dumps(commands, -1))
        self._events.append(pickle.dumps(self._engine.step(list(received)), -1))

    def receive(self, _timeout_s: float | None) -> EngineEvents:
        """Return the next answer."""
        events: EngineEvents = pickle.loads(self._events.popleft())
        return events

    def interrupt(self) -> None:
        """Nothing waits."""


class WorkerParts:
    """What a worker has between its queue and the ledger, each step of it done by hand."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        database = Database(machine.database_url, pool_size=2, lock_timeout_ms=MAX_HOLD_MS)
        limits = WorkerLimits(MAX_SEQS, KV_BLOCKS, 16, 2048, 8, 64)
        database.run(lambda c: WorkerRepository(c).register(INCARNATION, POOL, "host", limits, LEASE_S))
        status = EngineStatus(Capacity(MAX_SEQS, KV_BLOCKS))
        app = make_app(machine.redis_url)
        self.engine = LoopedEngine()
        self.attempts = AttemptTable(lambda _task_id: self.celery.wake())
        self.publisher = EventPublisher(
            for_service(machine.redis_url),
            PoolKeys(POOL).worker_events,
            WorkerEventBuilder(INCARNATION, status),
            JobEvents(app, f"{INCARNATION}@host", clock=time.process_time),
            on_broken=_broken,
        )
        self.committer = Committer(
            PostgresLedger(database, INCARNATION),
            self.attempts,
            self.publisher.committed,
            health=LedgerHealth(),
            spill=Spill(folder / "spill", INCARNATION),
            max_uncommitted=10_000,
            on_broken=_broken,
        )
        engine: Any = self.engine
        self.host = EngineHost(
            engine,
            self.attempts,
            self.committer,
            self.publisher,
            AdapterIds(folder),
            status,
            is_revoked=lambda _task_id: False,
            on_died=lambda error: _broken(str(error)),
            on_broken=_broken,
            on_text=lambda _piece: None,
            limit=ProgressLimit(start_s=LEASE_S),
            ask_aborts=lambda held: database.run(lambda c: WorkerRepository(c).aborts(INCARNATION, held)),
        )
        define_tasks(app, self.host, pool=POOL, incarnation=INCARNATION, answer=self.publisher.answer)
        self.celery = CeleryWorker(
            app, INCARNATION, f"{INCARNATION}@host", self.host, max_num_seqs=MAX_SEQS, on_ready=lambda: None
        )
        threading.Thread(target=self.celery.run, name="celery", daemon=True).start()

    def serve(self, stages: Stages) -> None:
        """Bring what was joined to its end."""
        host, committer = self.host, self.committer
        while host._arrivals._waiting:
            with stages.timed("worker: ask whether leased"):
                host._arrivals._step()
        while host._feeder._requests:
            with stages.timed("worker: feed, and the engine"):
                host._feeder._step()
        while self.engine.has_events:
            with stages.timed("worker: hear the engine"):
                host._pump_once()
        while committer._queue.num_kept:
            with stages.timed("worker: commit"):
                committer._step()
            with stages.timed("worker: tell and show"):
                self.publisher._step()


def _broken(what: str) -> None:
    raise RuntimeError(f"{what} has given up: see the log")


def run(machine: Machine, folder: Path, number: int, stages: Stages) -> None:
    """Bring so many jobs from submit to result."""
    add_adapters(machine.database_url)
    scheduler = Scheduler(SchedulerSettings(), clock=time.process_time)
    keeper = TermKeeper.take(scheduler._terms, POOL, INCARNATION, LEASE_S, on_broken=_broken)
    assert keeper is not None, "nobody else leads"
    leader = scheduler._leader(keeper)
    leader.recover()
    worker = WorkerParts(machine, folder)
    leader.recover()
    with Client(machine.redis_url) as client:
        while not client.adapters():
            leader.turn()
        serve(leader, scheduler, worker, client, 512, Stages(machine, is_profiled=False))
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
        with stages.timed("scheduler: turn", others="worker: Celery"):
            leader.turn()
        with stages.timed("scheduler: show"):
            scheduler._flower._notes.show(scheduler._flower._thread.item)
        with stages.timed("waiting for Celery", others="worker: Celery"):
            _await(lambda: len(worker.attempts) == _num_outstanding(leader))
        worker.serve(stages)
    with stages.timed("producer: results", others="producer: results"):
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
