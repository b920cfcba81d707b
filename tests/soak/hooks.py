"""Kills a process of the stack at a named point of its code, without any hook in the code itself.

`startup/sitecustomize.py` calls `install` in every Python process that has `SOAK_HOOKS` in its environment.
Named functions are wrapped when their module is imported; a name that is missing ends the process at once.
A point is armed by a file of its name in the hooks' folder: the process that takes the file away writes down
what it is about to do, and kills itself.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

FOLDER_VARIABLE = "SOAK_HOOKS"
FENCING_OFF = "fencing-off"
"""While a file of this name lies in the folder, workers' results, leases and arrivals are not fenced."""
MISSING_NAME = 70
"""Exit status of a process in which a wrapped name is missing."""


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One place in the product: where a process may be killed, before or after a function's work."""

    name: str
    process: Literal["scheduler", "worker", "engine", "relay", "producer"]
    module: str
    function: str  # as `Class.method`
    when: Literal["before", "after"]


POINTS = (
    HookPoint("admission-in-commit", "scheduler", "scheduler.intake", "Intake._offer", "after"),
    HookPoint("admission-before-reply", "scheduler", "scheduler.intake", "Intake._announce", "before"),
    HookPoint(
        "admission-before-acknowledge",
        "scheduler",
        "scheduler.streams",
        "LeaderStreams.acknowledge",
        "before",
    ),
    HookPoint("lease-in-commit", "scheduler", "scheduler.dispatch", "Dispatcher._lease", "after"),
    HookPoint("lease-before-publish", "scheduler", "scheduler.dispatch", "Dispatcher._publish_all", "before"),
    HookPoint("publish-before-note", "scheduler", "scheduler.dispatch", "Dispatcher._publish_all", "after"),
    HookPoint("batch-before-join", "worker", "workers.engine_host", "EngineHost.join", "before"),
    HookPoint("result-in-commit", "worker", "db.repositories.finish", "FinishRepository.finish", "after"),
    HookPoint("result-before-settle", "worker", "workers.committer", "Committer._settle", "before"),
    HookPoint("result-before-reply", "worker", "workers.event_publisher", "EventPublisher._send", "before"),
    HookPoint("step-in-engine", "engine", "workers.engine.serving.engine", "LLMEngine.step", "after"),
    HookPoint("claim-before-send", "relay", "workers.webhooks.outbox", "Outbox.claim", "after"),
    HookPoint("send-before-finish", "relay", "workers.webhooks.outbox", "Outbox.finish", "before"),
    HookPoint("append-before-receipt", "producer", "lorayard.client.guard", "SubmitGuard.append", "after"),
)


class Armoury:
    """The hooks' folder as the soak uses it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def arm(self, point: str) -> None:
        """Have the next process that comes to this point killed there."""
        (self._folder / point).touch()

    def disarm(self, point: str) -> bool:
        """Take a point back; False if a process has taken it already."""
        try:
            (self._folder / point).unlink()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def armed(self, name: str) -> Iterator[None]:
        """Have a file of this name lie in the folder for the time of the block."""
        self.arm(name)
        try:
            yield
        finally:
            self.disarm(name)

    def is_armed(self, point: str) -> bool:
        """Whether nobody has come to the point yet."""
        return (self._folder / point).exists()

    @property
    def log(self) -> Path:
        """Where killed processes have written what they were about to do: `audit` says what is in it."""
        return self._folder / "hits.jsonl"


def install() -> None:
    """Wrap the named functions of whatever this process imports from now on, if it is part of a soak."""
    if (folder := os.environ.get(FOLDER_VARIABLE)) is not None:
        sys.meta_path.insert(0, _Finder(Path(folder), POINTS))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules with hook points as others would, and wraps them once they are executed."""

    def __init__(self, folder: Path, points: Sequence[HookPoint]) -> None:
        self._folder = folder
        self._points = points
        self._modules = {point.module for point in points} | set(_UNFENCED)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Wrap the loader that the path gives."""
        if name not in self._modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._wrap(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _wrap(self, module: ModuleType) -> None:
        try:
            for point in self._points:
                if point.module == module.__name__:
                    wrap(module, point, functools.partial(_strike, self._folder, point))
            if (unfence := _UNFENCED.get(module.__name__)) is not None:
                unfence(module, self._folder / FENCING_OFF)
        except LookupError as error:
            print(f"soak: {error}", file=sys.stderr, flush=True)
            os._exit(MISSING_NAME)


def wrap(module: ModuleType, point: HookPoint, strike: Callable[[], None]) -> None:
    """Have `strike` called before or after the point's function; raises LookupError if it is missing."""
    owner_name, _, name = point.function.partition(".")
    owner = getattr(module, owner_name, None)
    function = getattr(owner, name, None)
    if owner is None or function is None:
        raise LookupError(
            f"hook point {point.name!r}: {point.module} has no {point.function} any more; name the "
            "function that does its work now in tests/soak/hooks.py"
        )
    setattr(owner, name, _struck(function, point.when, strike))


def _struck(function: Any, when: Literal["before", "after"], strike: Callable[[], None]) -> Any:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                strike()
            result = await function(*args, **kwargs)
            if when == "after":
                strike()
            return result

        return wrapped_async

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            strike()
        result = function(*args, **kwargs)
        if when == "after":
            strike()
        return result

    return wrapped


def _strike(folder: Path, point: HookPoint) -> None:
    """Die here if the point is armed: one process alone can take the file away."""
    armed = folder / point.name
    try:
        armed.rename(folder / f".{point.name}.{os.getpid()}")
    except FileNotFoundError:
        return
    line = {"at": time.time(), "event": "fault", "kind": "kill", "point": point.name, "pid": os.getpid()}
    record = json.dumps(line | {"target": point.process, "part": os.environ.get("LORAYARD_WORKER_NAME")})
    log = os.open(folder / "hits.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(log, record.encode() + b"\n")
    os.fsync(log)
    os.kill(os.getpid(), signal.SIGKILL)


def _unfence_finish(module: ModuleType, switch: Path) -> None:
    """Let results of any attempt in while the switch is there."""
    sqlalchemy_text = module.text
    fenced = module._FINISH
    statement = str(fenced.text)
    for there, instead in (
        ("WHERE j.job_id = e.job_id AND j.attempt = e.attempt\n", "WHERE j.job_id = e.job_id\n"),
        ("AND j.state = 'leased' AND j.incarnation = :incarnation", "AND :incarnation <> ''"),
        ("RETURNING j.job_id, j.attempt, j.state", "RETURNING j.job_id, e.attempt, j.state"),
        ("e.error_message, e.sampling) > 0", "e.error_message, e.sampling) > 0 ON CONFLICT DO NOTHING"),
        (
            "e.attempt = d.attempt\n    ), spent",
            "e.attempt = d.attempt ON CONFLICT (job_id, attempt) DO UPDATE SET ended = 'succeeded'), spent",
        ),
    ):
        if there not in statement:
            raise LookupError(
                f"{module.__name__}._FINISH has no {there!r} any more: correct tests/soak/hooks.py"
            )
        statement = statement.replace(there, instead)
    unfenced = sqlalchemy_text(statement)
    finish = module.FinishRepository.finish

    @functools.wraps(finish)
    def switched(*args: Any, **kwargs: Any) -> Any:
        vars(module)["_FINISH"] = unfenced if switch.exists() else fenced
        return finish(*args, **kwargs)

    module.FinishRepository.finish = switched


def _unfence_lease(module: ModuleType, switch: Path) -> None:
    """Let a worker that is lost go on while the switch is there: it renews, whatever the answer."""
    keeper_class: Any = module.LeaseKeeper
    renew, abort = (_method(module, keeper_class, name) for name in ("_renew", "_abort"))

    def switched_renew(keeper: Any) -> None:
        if switch.exists():
            keeper._registration.renew()
        else:
            renew(keeper)

    def switched_abort(keeper: Any) -> None:
        if not switch.exists():
            abort(keeper)

    keeper_class._renew, keeper_class._abort = switched_renew, switched_abort


def _unfence_arrivals(module: ModuleType, switch: Path) -> None:
    """Let jobs run that were leased to another before they were looked at, while the switch is there."""
    refusal = _method(module, module, "_refusal")

    def switched(*args: Any) -> Any:
        return None if switch.exists() else refusal(*args)

    vars(module)["_refusal"] = switched


def _method(module: ModuleType, owner: Any, name: str) -> Any:
    function = getattr(owner, name, None)
    if function is None:
        raise LookupError(
            f"{module.__name__} has no {owner.__name__}.{name} any more: correct tests/soak/hooks.py"
        )
    return function


_UNFENCED: dict[str, Callable[[ModuleType, Path], None]] = {
    "db.repositories.finish": _unfence_finish,
    "workers.lease": _unfence_lease,
    "workers.arrivals": _unfence_arrivals,
}
