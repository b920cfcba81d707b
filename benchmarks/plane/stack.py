"""The servers and processes under measurement, and the processor time that each of them takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from lorayard.local import SERVERS, Child, ChildSpec, PartKind, Stack, StackConfig

ROOT: Final = Path(__file__).parents[2]
MODEL: Final = ROOT / "examples" / "tiny" / "base"
START_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 60.0


class Spent(NamedTuple):
    """Processor seconds by the process that spent them; differences of two readings add up to a run's."""

    by_process: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """All processes together."""
        return sum(self.by_process.values())

    def since(self, earlier: Spent) -> Spent:
        """Return what was spent since an earlier reading."""
        before = earlier.by_process
        return Spent({name: spent - before.get(name, 0.0) for name, spent in self.by_process.items()})


class Machine:
    """Redis and Postgres of its own, and whatever is started on them, all in one folder."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder = folder
        parts: frozenset[PartKind] = SERVERS | frozenset[PartKind](("migrate",))
        self.stack = Stack(
            StackConfig(
                state_dir=folder / "state", parts=parts, durable=durable, start_timeout_s=START_TIMEOUT_S
            )
        )
        self._children: list[Child] = []

    def __enter__(self) -> Machine:
        self.stack.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_parts()
        self.stack.stop()

    @property
    def redis_url(self) -> str:
        """Where Redis is."""
        return self.stack.redis.url

    @property
    def database_url(self) -> str:
        """Where the ledger is."""
        return self.stack.postgres.url

    def spawn(
        self, name: str, *arguments: str, ready: bool = True, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -m ARGUMENTS`, which ends with this process; by default, wait until it is ready."""
        ready_file = self._folder / f"ready-{name}"
        ready_file.unlink(missing_ok=True)
        ours = {
            **self.stack.client_env(),
            "LORAYARD_MODEL": str(MODEL),
            "LORAYARD_AUTO_TENANTS": "true",
            "LORAYARD_READY_FILE": str(ready_file),
            "LORAYARD_SPILL_DIR": str(self._folder / "spill"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LORAYARD_")}
        child = self.stack._started().registry.spawn(
            ChildSpec(
                name=name,
                argv=(sys.executable, "-m", *arguments),
                log_path=self._folder / f"{name}.log",
                env={**kept, **ours, **(environment or {})},
                cwd=ROOT,
            )
        )
        self._children.append(child)
        if ready:
            child.wait_ready(ready_file.exists, START_TIMEOUT_S)

    def stop_parts(self) -> None:
        """Stop what was started, the latest first, as SIGTERM does."""
        while self._children:
            self._children.pop().stop(STOP_TIMEOUT_S)

    @contextmanager
    def only(self) -> Iterator[None]:
        """Stop at the end what is started inside."""
        try:
            yield
        finally:
            self.stop_parts()

    def spent(self) -> Spent:
        """Read the processor time of all processes so far, this one as the producer."""
        own = os.times()
        found = {"producer": own.user + own.system}
        for child in self._children:
            found[child.name] = _own_seconds(child.pid)
            for grandchild in psutil.Process(child.pid).children(recursive=True):
                name = f"{child.name}'s child"
                found[name] = found.get(name, 0.0) + _own_seconds(grandchild.pid)
        found["redis"] = _own_seconds(self.stack.children["redis"].pid)
        found["postgres"] = _family_seconds(self.stack.children["postgres"].pid)
        return Spent(found)

    def memory_bytes(self, name: str) -> int:
        """Read the memory that a part alone holds (its unique set)."""
        (pid,) = [child.pid for child in self._children if child.name == name]
        return int(psutil.Process(pid).memory_full_info().uss)


def _own_seconds(pid: int) -> float:
    try:
        spent = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system)


def _family_seconds(pid: int) -> float:
    """Read a server's time, with that of its children, the ended ones included."""
    process = psutil.Process(pid)
    spent = process.cpu_times()
    ended = spent.children_user + spent.children_system
    return float(
        spent.user
        + spent.system
        + ended
        + sum(_own_seconds(child.pid) for child in process.children(recursive=True))
    )
