"""A short soak loses, doubles and mistakes nothing; what a stack without fencing does is found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.polling import eventually
from tests.soak.audit import audit
from tests.soak.expected import write_expected
from tests.soak.hooks import FENCING_OFF
from tests.soak.plan import Fault, Plan, make_plan
from tests.soak.receivers import Receivers
from tests.soak.rig import SoakRig
from tests.soak.run import SoakOptions, load, settle

SEED = 7
PATIENCE_S = 150.0
FAULTS = (
    Fault(40, "hook", "lease-before-publish"),
    Fault(70, "hook", "append-before-receipt"),
    Fault(100, "hook", "result-in-commit"),
    Fault(140, "restart_redis"),
    Fault(180, "kill", "worker"),
)


@pytest.fixture(scope="module")
def rig(new_state_dir: Callable[[], Path]) -> Iterator[SoakRig]:
    """A stack with two of everything."""
    folder = new_state_dir()
    folder.mkdir(mode=0o711)
    write_expected(folder / "expected.json")
    with closing(SoakRig(folder, "short", webhook_timeout_s=5.0)) as rig:
        rig.start()
        yield rig


def test_what_a_stack_without_fencing_does_is_found(rig: SoakRig) -> None:
    rig.begin("short-unfenced", rig.folder.parent / "unfenced")
    plan = make_plan(120, 0, SEED)

    with rig.armoury.armed(FENCING_OFF), Receivers(rig.folder, 6.0) as receivers:
        rig.start_producers(plan, receivers.urls, count=1, jobs_per_s=None, patience_s=PATIENCE_S)
        rig.allow(len(plan.jobs))
        stopped = eventually(lambda: _stop_with_jobs(rig, "worker-1"), PATIENCE_S, "a worker with jobs")
        eventually(lambda: not rig.are_producing(), PATIENCE_S, "the end of all jobs, elsewhere")
        os.kill(stopped, signal.SIGCONT)

        eventually(lambda: audit(rig.source(), is_over=False).count("doubled"), PATIENCE_S, "a second answer")


def test_a_short_soak_finds_nothing(rig: SoakRig) -> None:
    rig.begin("short-fenced", rig.folder.parent / "fenced")
    options = SoakOptions(folder=rig.folder, jobs=240, kills=4, producers=2, patience_s=PATIENCE_S)
    plan = Plan(make_plan(options.jobs, 0, SEED).jobs, FAULTS)

    with Receivers(rig.folder, 6.0) as receivers:
        load(rig, plan, receivers.urls, options, print)
        settle(rig, options, print)
    rig.stop_services()
    verdict = audit(rig.source())

    assert verdict.is_clean, verdict.report()
    assert verdict.terminal == verdict.accepted > 0.9 * options.jobs
    assert verdict.other_faults == {"restart redis": 1, "kill worker": 1}
    assert verdict.hits == {fault.target: 1 for fault in FAULTS if fault.kind == "hook"}


def _stop_with_jobs(rig: SoakRig, part: str) -> int | None:
    """Stop a worker that has jobs in hand and keeps them; None if it had none just now."""
    pid = rig.stack.children[part].pid
    with psycopg.connect(rig.database_url, autocommit=True) as connection:
        if not _num_held(connection, part):
            return None
        os.kill(pid, signal.SIGSTOP)
        if _num_held(connection, part):
            return pid
    os.kill(pid, signal.SIGCONT)
    return None


def _num_held(connection: psycopg.Connection[Any], part: str) -> int:
    """Count what the ledger has leased to a worker: stopped, it cannot end any of it."""
    row = connection.execute(
        "SELECT count(*) FROM jobs j JOIN workers w USING (incarnation)"
        " WHERE j.state = 'leased' AND w.hostname LIKE %s",
        (f"{part}-%",),
    ).fetchone()
    return row[0] if row else 0
