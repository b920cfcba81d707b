"""Does the faults of a plan when they are due, and writes down when each began and ended."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import redis

from lorayard.local.processes import descendants
from tests.soak.hooks import POINTS
from tests.soak.journal import Journal
from tests.soak.plan import Fault
from tests.soak.rig import RELAYS, SCHEDULERS, WORKERS, SoakRig

HOOK_PATIENCE_S = 90.0
"""A point that nobody has come to by then is disarmed, and counts as missed."""
FROZEN_SHARE = 0.8
FREEZE_S = 0.25
FULL_MARGIN_BYTES = 20_000


class Injector:
    """Mutable: what is armed, stopped or slowed down now. Every fault is one record with `at` and `until`."""

    def __init__(self, rig: SoakRig, seed: int) -> None:
        self._rig = rig
        self._rng = random.Random(f"targets/{seed}")
        self._journal = Journal(rig.folder / "faults.jsonl")
        self._armed: dict[str, float] = {}
        self._pending: list[tuple[float, Callable[[], None]]] = []
        self._num_on_postgres = 0
        self.kills = 0

    def inject(self, fault: Fault) -> None:
        """Begin one fault; a long one ends in a later `look_after`."""
        do = getattr(self, f"_{fault.kind}", None)
        if do is None:
            raise LookupError(
                f"nobody knows how to do the fault {fault.kind!r}: add it to tests/soak/injector.py"
            )
        do(fault)

    def look_after(self) -> None:
        """End what has lasted long enough."""
        now = time.monotonic()
        due = [item for item in self._pending if item[0] <= now]
        self._pending = [item for item in self._pending if item[0] > now]
        for _, undo in due:
            undo()
        for point, since in list(self._armed.items()):
            if not self._rig.armoury.is_armed(point):
                del self._armed[point]
                self.kills += 1
            elif now - since > HOOK_PATIENCE_S and self._rig.armoury.disarm(point):
                del self._armed[point]
                self._journal.append({"event": "missed", "point": point})

    def close(self) -> None:
        """Write nothing more."""
        self._journal.close()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is armed, stopped or slowed down."""
        return not self._armed and not self._pending

    @property
    def is_postgres_well(self) -> bool:
        """Whether Postgres is neither slow nor read-only: this thread thaws it, and must not wait for it."""
        return self._num_on_postgres == 0

    def _hook(self, fault: Fault) -> None:
        assert any(point.name == fault.target for point in POINTS)
        self._rig.armoury.arm(fault.target)
        self._armed[fault.target] = time.monotonic()

    def _kill(self, fault: Fault) -> None:
        found = self._choose(fault.target)
        if found is None:
            return
        part, pid = found
        self._write("kill", target=fault.target, part=part, pid=pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills += 1

    def _stop(self, fault: Fault) -> None:
        found = self._choose(fault.target)
        if found is None:
            return
        part, pid = found
        self._write("stop", fault.for_s, target=fault.target, part=part, pid=pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        self._later(fault.for_s, lambda: _continue(pid))

    def _restart_redis(self, _fault: Fault) -> None:
        self._server("restart", "redis", self._rig.stack.restart)

    def _restart_postgres(self, _fault: Fault) -> None:
        self._server("restart", "postgres", self._rig.stack.restart)

    def _kill_redis(self, _fault: Fault) -> None:
        self._server("kill", "redis", self._kill_and_start)

    def _kill_postgres(self, _fault: Fault) -> None:
        self._server("kill", "postgres", self._kill_and_start)

    def _kill_and_start(self, name: str) -> None:
        self._rig.stack.kill(name)
        self.kills += 1
        self._rig.stack.restart(name)

    def _server(self, kind: str, name: str, do: Callable[[str], None]) -> None:
        began = time.time()
        do(name)
        self._journal.append(
            {"event": "fault", "kind": kind, "target": name, "part": name, "at": began, "until": time.time()}
        )

    def _slow_postgres(self, fault: Fault) -> None:
        """Freeze every process of Postgres for most of each moment."""
        self._write("slow", fault.for_s, target="postgres")
        server = self._rig.stack.children["postgres"].pid
        until = time.monotonic() + fault.for_s
        self._num_on_postgres += 1

        def freeze() -> None:
            if time.monotonic() >= until:
                self._num_on_postgres -= 1
                return
            pids = [server, *(identity.pid for identity in descendants(server))]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            self._later(FREEZE_S * FROZEN_SHARE, lambda: thaw(pids))

        def thaw(pids: list[int]) -> None:
            for pid in pids:
                _continue(pid)
            self._later(FREEZE_S * (1 - FROZEN_SHARE), freeze)

        freeze()

    def _read_only_postgres(self, fault: Fault) -> None:
        self._write("read-only", fault.for_s, target="postgres")
        self._alter("ALTER SYSTEM SET default_transaction_read_only = on")
        self._num_on_postgres += 1
        self._later(fault.for_s, self._take_writes_again)

    def _take_writes_again(self) -> None:
        self._alter("ALTER SYSTEM RESET default_transaction_read_only")
        self._num_on_postgres -= 1

    def _alter(self, statement: str) -> None:
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self._rig.database_url, autocommit=True, options=options) as connection:
            connection.execute(statement)
            connection.execute("SELECT pg_reload_conf()")

    def _full_redis(self, fault: Fault) -> None:
        self._write("full", fault.for_s, target="redis")
        with redis.Redis.from_url(self._rig.redis_url) as client:
            used: Any = client.info("memory")
            client.config_set("maxmemory", used["used_memory"] + FULL_MARGIN_BYTES)
        self._later(fault.for_s, self._empty_redis)

    def _empty_redis(self) -> None:
        with redis.Redis.from_url(self._rig.redis_url) as client:
            client.config_set("maxmemory", 0)

    def _flush_redis(self, _fault: Fault) -> None:
        """Flush all, and write down which jobs were in Redis alone at that very moment."""
        with redis.Redis.from_url(self._rig.redis_url) as client:
            streams = list(client.scan_iter("lorayard:*:jobs:*"))
            with client.pipeline(transaction=True) as pipeline:
                for stream in streams:
                    pipeline.xrange(stream)
                pipeline.flushall()
                answers = pipeline.execute()
        waiting = [json.loads(fields[b"body"])["job_id"] for entries in answers[:-1] for _, fields in entries]
        self._write("flush", target="redis", waiting=waiting)

    def _rolling_restart(self, _fault: Fault) -> None:
        """End every part in order and start it again, one after the other, as an upgrade would."""
        began = time.time()
        for name in (*SCHEDULERS, *WORKERS, *RELAYS):
            if self._rig.stack.parts[name].alive:
                self._rig.stack.restart(name)
        self._journal.append(
            {"event": "fault", "kind": "rolling", "target": "all", "at": began, "until": time.time()}
        )

    def _choose(self, kind: str) -> tuple[str, int] | None:
        found = self._rig.pids(kind)
        if not found:
            self._journal.append({"event": "missed", "target": kind})
            return None
        return self._rng.choice(found)

    def _later(self, in_s: float, undo: Callable[[], None]) -> None:
        self._pending.append((time.monotonic() + in_s, undo))

    def _write(self, kind: str, for_s: float = 0.0, **fields: Any) -> None:
        now = time.time()
        self._journal.append({"event": "fault", "kind": kind, "at": now, "until": now + for_s, **fields})


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
