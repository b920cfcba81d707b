"""A short soak loses, doubles and mistakes nothing; what a stack without fencing does is found."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.polling import eventually
from tests.soak.audit import audit
from tests.soak.expected import write_expected
from tests.soak.hooks import FENCING_OFF
from tests.soak.plan import make_plan
from tests.soak.receivers import Receivers
from tests.soak.rig import SoakRig
from tests.soak.run import SoakOptions, load, settle

JOBS, KILLS, SEED = 300, 4, 7
PATIENCE_S = 150.0


@pytest.fixture(scope="module")
def soaked(new_state_dir: Callable[[], Path]) -> Iterator[tuple[SoakRig, Receivers]]:
    """A stack with two of everything, and receivers of its webhooks."""
    folder = new_state_dir()
    folder.mkdir(mode=0o711)
    write_expected(folder / "expected.json")
    rig = SoakRig(folder, "short", webhook_timeout_s=5.0)
    with closing(rig), Receivers(folder, 6.0) as receivers:
        rig.start()
        yield rig, receivers


def test_what_a_stack_without_fencing_does_is_found(soaked: tuple[SoakRig, Receivers]) -> None:
    rig, receivers = soaked
    rig.begin("short-unfenced", rig.folder / "unfenced")
    rig.armoury.arm(FENCING_OFF)
    plan = dataclasses.replace(make_plan(150, 0, SEED), faults=())
    rig.start_producers(plan, receivers.urls, count=1, jobs_per_s=None, patience_s=PATIENCE_S)
    rig.allow(len(plan.jobs))

    stopped = eventually(lambda: _stop_with_jobs(rig, "worker-1"), PATIENCE_S, "a worker stopped with jobs")
    eventually(lambda: not rig.are_producing(), PATIENCE_S, "the end of all jobs, elsewhere")
    os.kill(stopped, signal.SIGCONT)

    eventually(lambda: audit(rig.source(), is_over=False).count("doubled"), PATIENCE_S, "a doubled answer")
    assert rig.armoury.disarm(FENCING_OFF)


def test_a_short_soak_finds_nothing(soaked: tuple[SoakRig, Receivers]) -> None:
    rig, receivers = soaked
    rig.begin("short-fenced", rig.folder.parent / "fenced")
    options = SoakOptions(folder=rig.folder, jobs=JOBS, kills=KILLS, seed=SEED, patience_s=PATIENCE_S)
    whole = make_plan(JOBS, KILLS, SEED)
    few = tuple(fault for fault in whole.faults if fault.kind in ("hook", "kill", "restart_redis"))

    load(rig, dataclasses.replace(whole, faults=few), receivers.urls, options, print)
    settle(rig, options, print)
    rig.stop_services()
    verdict = audit(rig.source())

    assert verdict.is_clean, verdict.report()
    assert verdict.terminal == verdict.accepted > 0.9 * JOBS
    assert verdict.kills + verdict.missed == KILLS


def _stop_with_jobs(rig: SoakRig, part: str) -> int | None:
    """Stop a worker that has jobs in hand, which only the ledger can tell; None if it had none just now."""
    pid = rig.stack.children[part].pid
    os.kill(pid, signal.SIGSTOP)
    with psycopg.connect(rig.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM jobs j JOIN workers w USING (incarnation)"
            " WHERE j.state = 'leased' AND w.hostname LIKE %s",
            (f"{part}-%",),
        ).fetchone()
    if row is not None and row[0]:
        return pid
    os.kill(pid, signal.SIGCONT)
    return None
