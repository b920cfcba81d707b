"""The leader's housekeeping: old jobs leave, unused adapter files leave, and what is needed never does."""

from __future__ import annotations

import shutil
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from db.repositories.adapters import AdapterRepository
from db.repositories.admission import AdmissionRepository
from lorayard.contract.states import JobState
from lorayard.server.adapter_store import MARKER, make_store, revision_folder
from scheduler.adapter_collector import SET_ASIDE, AdapterCollector
from scheduler.leader_context import LeaderContext
from scheduler.retention import Retention
from tests.integration.db.ledger import new_job
from tests.integration.scheduler.pool_rig import PoolRig
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.polling import eventually

DAY_S = 86_400.0


@pytest.fixture
def context(rig: PoolRig) -> LeaderContext:
    """A term from the beginning of the test on."""
    return rig.take_office()


def age(rig: PoolRig, days: float) -> None:
    """Let every end lie so many days back."""
    rig.sql("UPDATE jobs SET ended_at = ended_at - make_interval(secs => :s)", s=days * DAY_S)


def run_jobs(rig: PoolRig, number: int, **fields: Any) -> list[UUID]:
    """Have jobs end well."""
    with rig.scheduler(retention_days=0), ScriptedWorker(rig):
        job_ids = rig.submit(number, **fields)
        rig.wait_for(JobState.SUCCEEDED, *job_ids)
    return job_ids


def test_a_leader_deletes_what_is_old_and_goes_on_serving(rig: PoolRig) -> None:
    with ScriptedWorker(rig):
        with rig.scheduler(retention_days=0):
            rig.wait_for(JobState.SUCCEEDED, *rig.submit(5))
            age(rig, 31)
            young = rig.submit(2)
            rig.wait_for(JobState.SUCCEEDED, *young)
        with rig.scheduler():
            eventually(lambda: rig.counts() == {"succeeded": 2}, what="only the young")
            more = rig.submit(3)
            rig.wait_for(JobState.SUCCEEDED, *more)

    assert {row.job_id for row in rig.sql("SELECT job_id FROM jobs")} == {*young, *more}
    assert rig.sql("SELECT count(*) FROM job_keys")[0][0] == 0


def test_zero_days_keep_everything_forever(rig: PoolRig, tmp_path: Path) -> None:
    run_jobs(rig, 3)
    context = rig.take_office()
    age(rig, 10_000)
    unused(rig, tmp_path, "old")

    assert not Retention(context, 0.0).delete_batch()
    AdapterCollector(context, tmp_path, 0.0).sweep()

    assert rig.counts() == {"succeeded": 3}
    assert revision_states(rig) == {"sha256:old": ("active", False)}


def test_a_successor_goes_on_where_a_leader_was_stopped(rig: PoolRig) -> None:
    run_jobs(rig, 7)
    context = rig.take_office()
    age(rig, 31)

    assert Retention(context, 30 * DAY_S, batch_jobs=3).delete_batch()
    left = sum(rig.counts().values())
    successor = Retention(context, 30 * DAY_S, batch_jobs=3)
    rounds = 1
    while successor.delete_batch():
        rounds += 1

    assert left <= 4
    assert rig.counts() == {}
    assert rounds <= 3
    tables = ("job_inputs", "job_outputs", "attempts")
    assert [rig.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables] == [0, 0, 0]


# Adapter files


def unused(rig: PoolRig, store: Path, name: str) -> str:
    """Add an adapter with files and remove its name again; returns its revision."""
    digest = rig.add_adapter(name)
    make_store(store)
    folder = revision_folder(store, digest)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    rig.database.run(lambda c: AdapterRepository(c).remove(rig.pool, name))
    return digest


def revision_states(rig: PoolRig) -> dict[str, tuple[str, bool]]:
    rows = rig.sql("SELECT digest, state, unused_since IS NOT NULL AS unused FROM adapter_revisions")
    return {row.digest: (row.state, row.unused) for row in rows}


def unused_for(rig: PoolRig, days: float) -> None:
    rig.sql(
        "UPDATE adapter_revisions SET unused_since = now() - make_interval(secs => :s) "
        "WHERE unused_since IS NOT NULL",
        s=days * DAY_S,
    )


def collecting(rig: PoolRig, context: LeaderContext, store: Path, *names: str) -> list[str]:
    """Bring unused revisions to the brink."""
    digests = [unused(rig, store, name) for name in names]
    sweep(context, store)
    unused_for(rig, 31)
    sweep(context, store)
    assert {revision_states(rig)[digest] for digest in digests} == {("collecting", True)}
    assert all(revision_folder(store, digest).exists() for digest in digests)
    return digests


def sweep(context: LeaderContext, store: Path) -> None:
    """Make one sweep, files included."""
    with closing(AdapterCollector(context, store, 30 * DAY_S)) as collector:
        collector.sweep()
        eventually(lambda: not collector.is_collecting, what="the end of the sweep")


def admit(rig: PoolRig, digest: str) -> UUID:
    job = new_job(adapter="sql", revision=digest)
    rig.database.run(lambda c: AdmissionRepository(c).admit(rig.pool, [job]))
    return job.job_id


def test_files_leave_one_sweep_after_their_revision_was_unused_for_long_enough(
    rig: PoolRig, context: LeaderContext, tmp_path: Path
) -> None:
    used = rig.add_adapter("used")
    revision_folder(tmp_path, used).mkdir()
    (digest,) = collecting(rig, context, tmp_path, "old")

    sweep(context, tmp_path)

    assert revision_states(rig)[digest][0] == "collected"
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("ready")}
    assert left == {"used", MARKER}
    assert revision_states(rig)[used] == ("active", False)


def test_a_revision_that_a_job_pins_meanwhile_is_kept(
    rig: PoolRig, context: LeaderContext, tmp_path: Path
) -> None:
    (digest,) = collecting(rig, context, tmp_path, "old")

    admit(rig, digest)

    assert revision_states(rig)[digest] == ("active", False)
    assert not AdapterCollector(context, tmp_path, 30 * DAY_S).collect(tmp_path, digest)
    assert revision_folder(tmp_path, digest).exists()


def test_a_collector_waits_for_an_admission_that_has_pinned(
    rig: PoolRig, context: LeaderContext, tmp_path: Path
) -> None:
    (digest,) = collecting(rig, context, tmp_path, "old")
    done: list[bool] = []
    collector = AdapterCollector(context, tmp_path, 30 * DAY_S)
    thread = threading.Thread(target=lambda: done.append(collector.collect(tmp_path, digest)))

    with rig.database.transaction() as admitting:
        AdapterRepository(admitting).pin(rig.pool, [digest])
        thread.start()
        eventually(lambda: waits_for_lock(rig), what="the collector at the lock")
        AdmissionRepository(admitting).admit(rig.pool, [new_job(adapter="old", revision=digest)])
    thread.join(10.0)

    assert done == [False]
    assert revision_folder(tmp_path, digest).exists()
    assert revision_states(rig)[digest] == ("active", False)


def waits_for_lock(rig: PoolRig) -> bool:
    return bool(rig.sql("SELECT FROM pg_locks WHERE NOT granted"))


def test_an_adapter_added_again_while_it_is_collected_gets_its_files_back(
    rig: PoolRig, context: LeaderContext, tmp_path: Path
) -> None:
    (digest,) = collecting(rig, context, tmp_path, "old")
    assert AdapterCollector(context, tmp_path, 30 * DAY_S).collect(tmp_path, digest)
    assert not revision_folder(tmp_path, digest).exists()

    rig.database.run(lambda c: AdapterRepository(c).keep(digest))
    assert revision_states(rig)[digest][0] == "collected"
    rig.add_adapter("old")

    assert revision_states(rig)[digest] == ("active", False)


def test_files_of_a_revision_that_another_pool_serves_stay(
    rig: PoolRig, context: LeaderContext, tmp_path: Path
) -> None:
    (digest,) = collecting(rig, context, tmp_path, "old")
    rig.sql("INSERT INTO adapter_revisions (pool, digest, rank, targets, bytes) "
             "VALUES ('other', :d, 4, '{}', 1)", d=digest)  # fmt: skip

    assert not AdapterCollector(context, tmp_path, 30 * DAY_S).collect(tmp_path, digest)

    assert revision_folder(tmp_path, digest).exists()


def test_what_a_dead_leader_had_set_aside_is_removed_or_put_back(
    rig: PoolRig, context: LeaderContext, tmp_path: Path
) -> None:
    gone, needed = collecting(rig, context, tmp_path, "gone", "needed")
    for digest in (gone, needed):
        folder = revision_folder(tmp_path, digest)
        folder.rename(tmp_path / f"{SET_ASIDE}{folder.name}")
    admit(rig, needed)

    sweep(context, tmp_path)

    assert revision_states(rig)[gone][0] == "collected"
    assert not list(tmp_path.glob(f"{SET_ASIDE}*"))
    assert not revision_folder(tmp_path, gone).exists()
    assert revision_folder(tmp_path, needed).exists()


@pytest.mark.parametrize("is_mounted_upon", [True, False])
def test_the_files_of_a_store_that_is_away_are_not_called_collected(
    rig: PoolRig, context: LeaderContext, tmp_path: Path, is_mounted_upon: bool
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (digest,) = collecting(rig, context, store, "old")
    store.rename(tmp_path / "elsewhere")
    if is_mounted_upon:
        (store / "lost+found").mkdir(parents=True)

    sweep(context, store)
    assert revision_states(rig)[digest][0] == "collecting"

    if is_mounted_upon:
        shutil.rmtree(store)
    (tmp_path / "elsewhere").rename(store)
    sweep(context, store)
    assert revision_states(rig)[digest][0] == "collected"
    assert not revision_folder(store, digest).exists()
