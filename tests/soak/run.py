"""One soak from start to verdict: load and faults by the plan, a quiet end, the audit."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psycopg
import structlog

from tests.soak.audit import Verdict, audit
from tests.soak.expected import write_expected
from tests.soak.injector import Injector
from tests.soak.plan import ADAPTERS, FRESH_HOSTS, MOVING, Plan, make_plan
from tests.soak.receivers import Receivers
from tests.soak.rig import WORKERS, SoakRig
from tests.soak.steady import Sampler

LOOK_S = 0.1
REPLACE_EVERY_S = 60.0
REPLACE_WITHIN_S = 60.0
CALM_WITHIN_S = 120.0
BLOCKING = (
    "restart_redis",
    "kill_redis",
    "restart_postgres",
    "kill_postgres",
    "flush_redis",
    "rolling_restart",
)
"""Faults that take their time, or must not meet another that is going on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """What one soak is asked for; `minutes` spreads the jobs, 0 submits them as fast as they are taken."""

    folder: Path
    jobs: int
    kills: int
    minutes: float = 0.0
    seed: int = 0
    producers: int = 3
    patience_s: float = 300.0  # so long may nothing end before what is left counts as lost
    webhook_timeout_s: float = 5.0
    run: str = "soak"
    fresh: bool = False  # tenants, adapters and hosts change all the time; Flower runs as well

    @property
    def jobs_per_s(self) -> float | None:
        """The pace of all producers together."""
        return self.jobs / (self.minutes * 60) if self.minutes else None


def soak(options: SoakOptions, say: Callable[[str], None] = print) -> Verdict:
    """Do all of it; the folder keeps what was written, the stack is gone afterwards."""
    options.folder.mkdir(parents=True, exist_ok=True)
    options.folder.chmod(0o711)  # Postgres, as a user of its own, passes through
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    write_expected(options.folder / "expected.json")
    plan = make_plan(options.jobs, options.kills, options.seed, fresh=options.fresh)
    timeout_s = options.webhook_timeout_s
    rig = SoakRig(options.folder, options.run, webhook_timeout_s=timeout_s, is_steady=options.fresh)
    num_hosts = FRESH_HOSTS if options.fresh else 0
    with closing(rig), Receivers(options.folder, timeout_s + 1.0, num_hosts) as receivers:
        say(f"starting the stack in {options.folder}")
        rig.start()
        say(f"{len(plan.jobs)} jobs, {options.kills} kills, {len(plan.faults)} faults, seed {options.seed}")
        with Sampler(options.folder, rig.mark) if options.fresh else nullcontext():
            load(rig, plan, receivers.urls, options, say)
        say("waiting until everything has ended")
        settle(rig, options, say)
        rig.stop_services()
        say("auditing")
        return audit(rig.source())


def load(
    rig: SoakRig, plan: Plan, receivers: dict[str, str], options: SoakOptions, say: Callable[[str], None]
) -> None:
    """Have the jobs produced, and do the faults between them."""
    rig.start_producers(
        plan,
        receivers,
        count=options.producers,
        jobs_per_s=options.jobs_per_s,
        patience_s=options.patience_s,
    )
    with closing(Injector(rig, options.seed)) as injector:
        _drive(rig, plan, injector, options, say)


def _drive(
    rig: SoakRig, plan: Plan, injector: Injector, options: SoakOptions, say: Callable[[str], None]
) -> None:
    """Go on until all jobs and faults are through."""
    faults, replacements = list(plan.faults), Replacements(time.monotonic())
    submitted, due_since = IntentCount(rig.journals), time.monotonic()
    while faults or rig.are_producing() or not injector.is_idle:
        # Jobs wait for faults, so that each comes at its number of jobs whatever the machine's speed.
        rig.allow(faults[0].at_job + plan.jobs_per_fault if faults else len(plan.jobs))
        rig.supervise()
        injector.look_after()
        if not faults or submitted.read() < faults[0].at_job:
            due_since = time.monotonic()
        elif _is_calm(injector, rig) or faults[0].kind not in BLOCKING or is_past(due_since + CALM_WITHIN_S):
            fault, due_since = faults.pop(0), time.monotonic()
            say(f"{submitted.count} jobs: {fault.kind} {fault.target} {fault.for_s or ''}".rstrip())
            injector.inject(fault)
        is_due = replacements.is_due(time.monotonic(), is_calm=_is_calm(injector, rig))
        if is_due and injector.is_postgres_well:
            source = replacements.count(time.monotonic())
            rig.add_adapter(MOVING, ADAPTERS[source % len(ADAPTERS)], fresh=source if options.fresh else 0)
        time.sleep(LOOK_S)


class Replacements:
    """Mutable: when an adapter is to be replaced: each minute, or up to a minute later if faults go on."""

    def __init__(self, begun_s: float) -> None:
        self._due_s = begun_s + REPLACE_EVERY_S
        self._count = 0

    def is_due(self, now_s: float, *, is_calm: bool) -> bool:
        """Whether it is time, by the monotonic clock."""
        return now_s >= self._due_s + (0.0 if is_calm else REPLACE_WITHIN_S)

    def count(self, now_s: float) -> int:
        """Count one; returns how many there were. One that came late leaves the next where it was due."""
        self._due_s = max(self._due_s + REPLACE_EVERY_S, now_s)
        self._count += 1
        return self._count


def _is_calm(injector: Injector, rig: SoakRig) -> bool:
    return injector.is_idle and rig.is_up()


def is_past(monotonic_s: float) -> bool:
    """Whether a time of the monotonic clock has passed."""
    return time.monotonic() > monotonic_s


class IntentCount:
    """Counts the submissions in growing journals, reading what is new each time."""

    def __init__(self, journals: list[Path]) -> None:
        self._offsets = dict.fromkeys(journals, 0)
        self.count = 0

    def read(self) -> int:
        """Count on, and return the sum."""
        for path, offset in self._offsets.items():
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    new = file.read()
                self._offsets[path] = offset + len(new)
                self.count += new.count(b'"event": "intent"')
        return self.count


def settle(rig: SoakRig, options: SoakOptions, say: Callable[[str], None]) -> None:
    """Wait until all parts serve and no job or webhook of the run is open; for the patience at most."""
    deadline = time.monotonic() + options.patience_s
    while time.monotonic() < deadline:
        rig.supervise()
        if rig.is_up() and (left := _unfinished(rig)) is not None and not any(left):
            break
        time.sleep(0.2)
    else:
        say(f"open jobs, webhooks, and leases of workers that are gone: {_unfinished(rig)}")
    for stream in ("jobs:*", "control", "completions"):
        rig.await_empty(stream)


_UNFINISHED = """
    SELECT (SELECT count(*) FROM jobs WHERE ended_at IS NULL AND tenant LIKE %(tenants)s),
        (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending' AND tenant LIKE %(tenants)s),
        (SELECT greatest(0, count(*) - %(workers)s) FROM workers WHERE state NOT IN ('gone', 'lost'))
"""


def _unfinished(rig: SoakRig) -> tuple[int, ...] | None:
    try:
        with psycopg.connect(rig.database_url) as connection:
            values = {"tenants": f"{rig.run}-%", "workers": len(WORKERS)}
            return connection.execute(_UNFINISHED, values).fetchone()
    except psycopg.OperationalError:
        return None
