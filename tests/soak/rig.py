"""Runs what is soaked: a stack with two schedulers and two relays, the producers, and whatever dies again."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psycopg
import redis
from safetensors.numpy import load_file, save_file
from sqlalchemy import text

from db import Database
from db.repositories.tenants import TenantRepository
from db.secrets import SecretBox
from examples.demo.stage import MAX_RANK, add_adapters, stack_config
from examples.demo.workload import ADAPTERS_DIR, MODEL_DIR
from lorayard import Client
from lorayard.local import EVERYTHING, Stack, services
from lorayard.local.postgres_server import plain_url
from lorayard.local.processes import descendants
from tests.soak.audit import Source
from tests.soak.expected import generation
from tests.soak.hooks import FOLDER_VARIABLE, Armoury
from tests.soak.journal import Journal
from tests.soak.plan import ADAPTERS, MOVING, Plan, requests
from tests.soak.producer import UNTOLD

RUN_VARIABLE = "SOAK_RUN"
"""In the environment of every process of a soak: the auditor finds by it those that are left."""
REPOSITORY = Path(__file__).parents[2]
WORKERS = ("worker-1", "worker-2")
SCHEDULERS = ("scheduler", "scheduler-2")
RELAYS = ("relay", "relay-2")
RELAUNCH_AFTER_S = 1.0
FLOWER_TASKS, KV_BLOCKS = 2000, 256
"""A steady run's warm-up fills Flower with so many tasks, and writes all over so large a cache."""
START_S = 120.0
ENDED = (0, UNTOLD)
"""Exit statuses of producers that are through."""
ENGINE_MODULE = b"workers.engine.serving.child"
LOADER_COMM = "lorayard-loader"
"""An engine's loader is a copy of its process, with a name of its own."""


class SoakRig:
    """Mutable: the stack and the producers of one soak; one thread calls it."""

    def __init__(self, folder: Path, run: str, *, webhook_timeout_s: float, is_steady: bool = False) -> None:
        """A steady run has Flower as well, and what is kept in bounds has those that its warm-up reaches."""
        self.mark = self.run = run
        self.folder = folder
        self.armoury = Armoury(folder / "hooks")
        self.adapters = Journal(folder / "adapters.jsonl")
        startup = Path(__file__).with_name("startup")
        self._marks = {
            "PYTHONPATH": os.pathsep.join(map(str, (startup, REPOSITORY))),
            FOLDER_VARIABLE: str(folder / "hooks"),
            RUN_VARIABLE: self.mark,
        }
        own = {
            "LORAYARD_WEBHOOK_TIMEOUT_S": f"{webhook_timeout_s:g}",
            "LORAYARD_BATCH_INVARIANT": "1",  # sampled answers are compared, too
            "OMP_NUM_THREADS": "1",
        } | ({"LORAYARD_NUM_KV_BLOCKS": str(KV_BLOCKS)} if is_steady else {})
        self.stack = Stack(
            dataclasses.replace(
                stack_config(folder / "state"),
                parts=EVERYTHING if is_steady else EVERYTHING - {"flower"},
                flower_max_tasks=FLOWER_TASKS,
                extra_env={**self._marks, **own},
            )
        )
        self._allowance = folder / "allowance"
        self.allow(0)
        self.producers: dict[str, subprocess.Popen[bytes]] = {}
        self._producer_commands: dict[str, list[str]] = {}
        self._dead_since: dict[str, float] = {}
        self._database: Database | None = None

    def start(self) -> None:
        """Start everything but the producers, with adapters and the tenants' secrets."""
        self.stack.start()
        self._start_second("scheduler-2", services.SCHEDULER)
        self._start_second("relay-2", services.RELAY)
        self._database = Database(self.environment["LORAYARD_DATABASE_URL"], name="soak")
        for name in ADAPTERS:
            self.add_adapter(name, name)
        self.add_adapter(MOVING, ADAPTERS[0])
        deadline = time.monotonic() + START_S
        with Client(self.redis_url) as client:
            while MOVING not in client.adapters():
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"no catalogue within {START_S:g} s: look into {self.folder}/state/logs"
                    )
                time.sleep(0.1)

    def begin(self, run: str, folder: Path) -> None:
        """Have what follows be another run, with tenants and files of its own, on the same stack."""
        folder.mkdir()
        for name in ("adapters.jsonl", "expected.json"):
            shutil.copy(self.folder / name, folder)
        self.adapters.close()
        self.adapters = Journal(folder / "adapters.jsonl")
        self.run, self.folder, self.producers = run, folder, {}

    def source(self) -> Source:
        """Tell the auditor where to look, the hits of hook points, and the secrets made for new tenants."""
        self._write_secrets()
        if self.armoury.log.exists():
            shutil.copy(self.armoury.log, self.folder)
        return Source(self.folder, self.database_url, self.redis_url, self.run, self.mark)

    @property
    def environment(self) -> dict[str, str]:
        """Where the stack is found."""
        return self.stack.client_env()

    @property
    def redis_url(self) -> str:
        """The stack's Redis."""
        return self.environment["LORAYARD_REDIS_URL"]

    @property
    def database_url(self) -> str:
        """The stack's Postgres, as libpq reads it."""
        return plain_url(self.environment["LORAYARD_DATABASE_URL"])

    def add_adapter(self, name: str, source: str, *, fresh: int = 0) -> None:
        """Make a shipped adapter the current revision of a name, as `lorayard adapters add` does.

        With `fresh`, another for each number, it is a copy that differs too little to answer otherwise.
        """
        assert self._database is not None, "start() comes first"
        self.adapters.append({"event": "adding", "name": name, "source": source})
        add_adapters(
            self._database,
            self.environment,
            {name: self._freshened(source, fresh) if fresh else ADAPTERS_DIR / source},
            model=MODEL_DIR,
            max_rank=MAX_RANK,
        )
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(
                "SELECT current_revision FROM adapters WHERE name = %s", (name,)
            ).fetchone()
        assert row is not None
        self.adapters.append({"event": "added", "name": name, "source": source, "revision": row[0]})

    def start_producers(
        self,
        plan: Plan,
        receivers: Mapping[str, str],
        *,
        count: int,
        jobs_per_s: float | None,
        patience_s: float,
    ) -> None:
        """Deal the jobs out to so many processes."""
        for number in range(count):
            name = f"producer-{number + 1}"
            task = {
                "run": self.run,
                "redis_url": self.redis_url,
                "jobs": [job.to_json() | {"may_end": job.may_end} for job in plan.jobs[number::count]],
                "requests": {one.name: generation(one) for one in requests()},
                "receivers": receivers,
                "jobs_per_s": None if jobs_per_s is None else jobs_per_s / count,
                "patience_s": patience_s,
                "allowance": str(self._allowance),
            }
            task_path = self.folder / f"{name}.task.json"
            task_path.write_text(json.dumps(task))
            journal = str(self.folder / f"{name}.jsonl")
            self._producer_commands[name] = [
                sys.executable, "-m", "tests.soak.producer", str(task_path), journal,
            ]  # fmt: skip
            self._launch_producer(name)

    def allow(self, jobs: int) -> None:
        """Have producers submit the jobs below this number, and no others."""
        partial = self._allowance.with_suffix(".partial")
        partial.write_text(str(jobs))
        partial.replace(self._allowance)

    @property
    def journals(self) -> list[Path]:
        """What the producers have written."""
        return [self.folder / f"{name}.jsonl" for name in self.producers]

    def are_producing(self) -> bool:
        """Whether any producer still has something to submit or to wait for."""
        return any(process.poll() not in ENDED for process in self.producers.values())

    def supervise(self) -> None:
        """Start again what has been dead for a moment."""
        now = time.monotonic()
        dead = [part.name for part in self.stack.ended()]
        dead += [name for name, one in self.producers.items() if one.poll() not in (None, *ENDED)]
        self._dead_since = {name: self._dead_since.get(name, now) for name in dead}
        for name, since in list(self._dead_since.items()):
            if now - since >= RELAUNCH_AFTER_S:
                del self._dead_since[name]
                if name in self.producers:
                    self._launch_producer(name)
                else:
                    self.stack.relaunch(name)

    def pids(self, kind: str) -> list[tuple[str, int]]:
        """Name the living processes of a kind, with the part that each belongs to."""
        if kind == "producer":
            return [(name, one.pid) for name, one in self.producers.items() if one.poll() is None]
        if kind in ("engine", "loader"):
            is_loader = kind == "loader"
            return [(part, pid) for part in WORKERS for pid in self._children_of(part, is_loader=is_loader)]
        names = {"worker": WORKERS, "scheduler": SCHEDULERS, "relay": RELAYS}[kind]
        parts = self.stack.parts
        return [(name, parts[name].child.pid) for name in names if parts[name].alive]

    def is_up(self) -> bool:
        """Whether every part runs and serves."""
        return all(part.alive and part.is_ready() for part in self.stack.parts.values())

    def stop_services(self) -> None:
        """End workers, relays and schedulers in order; the servers stay for the audit."""
        parts = self.stack.parts
        for name in WORKERS:
            parts[name].child.request_stop()
        for name in WORKERS:
            self.stack.stop_part(name)
        self.await_empty("completions")
        for name in (*RELAYS, *SCHEDULERS, "flower"):
            if name in parts:
                self.stack.stop_part(name)

    def await_empty(self, stream: str, within_s: float = 20.0) -> bool:
        """Wait until the leader has read a stream of the pool to its end."""
        deadline = time.monotonic() + within_s
        with redis.Redis.from_url(self.redis_url) as client:
            keys = list(client.scan_iter(f"lorayard:*:{stream}"))
            while any(client.xlen(key) for key in keys):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
        return True

    def close(self) -> None:
        """End whatever still runs."""
        for process in self.producers.values():
            process.kill()
            process.wait()
        if self._database is not None:
            self._database.dispose()
        self.adapters.close()
        self.stack.stop()

    def _start_second(self, name: str, argv: Sequence[str]) -> None:
        """Start another process of a kind of which a local stack has one."""
        assembly = self.stack._started()
        part = assembly._service(name, tuple(argv), {}, stop_grace_s=10.0)
        self.stack._launch(part)
        part.wait_ready()

    def _freshened(self, source: str, number: int) -> Path:
        folder = self.folder / "fresh" / str(number)
        shutil.copytree(ADAPTERS_DIR / source, folder)
        weights = folder / "adapter_model.safetensors"
        tensors = load_file(weights)
        first = min(tensors)
        save_file(tensors | {first: tensors[first] * (1 + number * 1e-6)}, weights)
        return folder

    def _launch_producer(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.producers[name] = subprocess.Popen(
                self._producer_commands[name],
                env={**os.environ, **self._marks, "LORAYARD_WORKER_NAME": name},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
            )

    def _children_of(self, part: str, *, is_loader: bool) -> Iterator[int]:
        child = self.stack.parts[part]
        if not child.alive:
            return
        for identity in descendants(child.child.pid):
            try:
                command = Path(f"/proc/{identity.pid}/cmdline").read_bytes()
                comm = Path(f"/proc/{identity.pid}/comm").read_text().strip()
            except OSError:
                continue
            if ENGINE_MODULE in command and (comm == LOADER_COMM) is is_loader:
                yield identity.pid

    def _write_secrets(self) -> None:
        assert self._database is not None, "start() comes first"
        box = SecretBox([self.environment["LORAYARD_SECRET_KEY"]])
        with self._database.transaction() as connection:
            tenants = TenantRepository(connection)
            rows = connection.execute(
                text("SELECT name FROM tenants WHERE name LIKE :names"), {"names": f"{self.run}-%"}
            )
            secrets = {name: box.decrypt(tenants.webhook_secrets(name)[0]) for name in rows.scalars()}
        (self.folder / "secrets.json").write_text(json.dumps(secrets))
