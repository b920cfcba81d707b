"""Starts a whole Lorayard on one machine and takes it down again, in the order that loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lorayard.local.assembly import Assembly
from lorayard.local.child import Child
from lorayard.local.config import StackConfig
from lorayard.local.errors import LocalStackError, UnknownPart
from lorayard.local.part import Part
from lorayard.local.postgres_server import PostgresServer
from lorayard.local.redis_server import RedisServer
from lorayard.local.services import WORKER_PREFIX, FlowerServer, client_environment
from lorayard.local.state import unwritable

_POLL_S = 0.05
_STOP_ORDER_AFTER_WORKERS = ("relay", "scheduler", "flower", "redis", "postgres")


class Stack:
    """The processes of one state directory, from the moment it is entered until it is left.

    They end with this process, however it ends. One thread at a time may call it. Wherever it waits it calls
    `pause` with some seconds; what that raises breaks the waiting off.
    """

    def __init__(self, config: StackConfig, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.config = config
        self._pause = pause
        self._parts: dict[str, Part] = {}
        self._num_workers_started = 0
        self._assembly: Assembly | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every part of the configuration; on failure nothing stays and the error says why."""
        if self._assembly is not None:
            raise LocalStackError(f"the stack in {self.config.state_dir} is already started")
        self._assembly = Assembly(self.config, self._pause)
        try:
            self._start_servers(self._assembly)
            self._start_services(self._assembly)
        except OSError as error:
            self.stop()
            raise unwritable(self.config.state_dir, error, "the stack was not started") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every part: workers drain first, servers go last. Producers are the caller's to stop before."""
        if self._assembly is None:
            return
        try:
            self._stop_in_order()
        finally:
            self._assembly.close()
            self._assembly = None
            self._parts.clear()
            self._num_workers_started = 0

    @property
    def redis(self) -> RedisServer:
        """The Redis that this stack started."""
        part = self._part("redis")
        assert isinstance(part, RedisServer)
        return part

    @property
    def postgres(self) -> PostgresServer:
        """The Postgres that this stack started."""
        part = self._part("postgres")
        assert isinstance(part, PostgresServer)
        return part

    @property
    def flower(self) -> FlowerServer:
        """The Flower that this stack started."""
        part = self._part("flower")
        assert isinstance(part, FlowerServer)
        return part

    def client_env(self) -> dict[str, str]:
        """Return the environment in which a producer or the `lorayard` command finds this stack."""
        variables = client_environment(self.config, self._started().addresses())
        if "flower" in self._parts:
            variables["LORAYARD_FLOWER_URL"] = self.flower.url
        return variables

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by name: redis, postgres, scheduler, worker-1, ..., relay, flower."""
        return dict(self._parts)

    @property
    def children(self) -> dict[str, Child]:
        """The process of each part's latest start, by the part's name."""
        return {name: part.child for name, part in self._parts.items()}

    def start_worker(self) -> str:
        """Start one more worker, and return its name once it serves."""
        name = self._launch_worker(self._started())
        self._parts[name].wait_ready()
        return name

    def stop_part(self, name: str) -> int | None:
        """End one part in order (a worker drains) and return its exit status; `restart` brings it back."""
        code = self._part(name).stop()
        self._started().registry.prune()
        return code

    def kill(self, name: str) -> None:
        """SIGKILL one part with all that it started; `restart` brings it back."""
        self._part(name).kill()
        self._started().registry.prune()

    def restart(self, name: str) -> None:
        """End one part in order if it runs, start it again and return once it serves."""
        self._part(name).restart()

    def relaunch(self, name: str) -> None:
        """Start one part that has ended, without waiting until it serves."""
        self._part(name).launch()

    def ended(self) -> list[Part]:
        """Return the parts whose process has ended, by whatever hand."""
        return [part for part in self._parts.values() if not part.alive]

    def _start_servers(self, assembly: Assembly) -> None:
        if "redis" in self.config.parts and (redis := assembly.start_redis()) is not None:
            self._parts["redis"] = redis
        if "postgres" in self.config.parts and (postgres := assembly.start_postgres()) is not None:
            self._parts["postgres"] = postgres

    def _start_services(self, assembly: Assembly) -> None:
        """Launch Lorayard's own processes in order, then wait for all: they spend seconds importing."""
        wanted = self.config.parts
        if "migrate" in wanted:
            assembly.migrate()
        if "scheduler" in wanted:
            self._launch(assembly.scheduler())
        if "workers" in wanted:
            for _ in range(self.config.num_workers):
                self._launch_worker(assembly)
        if "relay" in wanted:
            self._launch(assembly.relay())
        if "flower" in wanted:
            self._parts["flower"] = flower = assembly.flower()
            flower.start()
        self._await_all()

    def _launch(self, part: Part) -> None:
        part.launch()
        self._parts[part.name] = part

    def _launch_worker(self, assembly: Assembly) -> str:
        worker = assembly.worker(self._num_workers_started + 1)
        self._num_workers_started += 1
        self._launch(worker)
        return worker.name

    def _await_all(self) -> None:
        """Return once all serve; whichever dies meanwhile fails the start at once."""
        waiting = list(self._parts.values())
        deadline = time.monotonic() + self.config.start_timeout_s
        while waiting := [part for part in waiting if not part.is_ready()]:
            for part in self._parts.values():
                part.child.check_alive()
            if time.monotonic() >= deadline:
                raise waiting[0].child.failure(f"was not ready within {self.config.start_timeout_s:g} s")
            self._pause(_POLL_S)

    def _stop_in_order(self) -> None:
        workers = [part for name, part in self._parts.items() if name.startswith(WORKER_PREFIX)]
        for worker in workers:
            worker.child.request_stop()
        began_s = time.monotonic()
        for worker in workers:
            worker.child.end_by(began_s + worker.stop_grace_s)
        for name in _STOP_ORDER_AFTER_WORKERS:
            if name in self._parts:
                self._parts[name].stop()

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise UnknownPart(f"the stack runs no {name!r}; it runs: {', '.join(self._parts) or 'nothing'}")
        return self._parts[name]

    def _started(self) -> Assembly:
        if self._assembly is None:
            raise LocalStackError(f"the stack in {self.config.state_dir} is not started")
        return self._assembly
