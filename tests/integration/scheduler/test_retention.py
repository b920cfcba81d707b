"""The leader's housekeeping: old jobs leave, unused adapter files leave, and what is needed never does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from db.repositories.adapters import AdapterRepository
from db.repositories.admission import AdmissionRepository
from db.repositories.terms import TermRepository
from lorayard.contract.states import JobState
from lorayard.server.adapter_store import revision_folder
from scheduler.adapter_collector import SET_ASIDE, AdapterCollector
from scheduler.office import Office
from scheduler.retention import Retention
from tests.integration.db.ledger import new_job
from tests.integration.scheduler.scripted_worker import ScriptedWorker
from tests.integration.scheduler.yard import Yard
from tests.polling import eventually

DAY_S = 86_400.0


def take_office(yard: Yard) -> Office:
    """Begin a term of ours, with no scheduler beside it."""
    term = yard.database.run(lambda c: TermRepository(c).take(yard.pool, "test", 3600.0))
    assert term is not None
    return Office(yard.pool, term, yard.database, yard.redis)


@pytest.fixture
def office(yard: Yard) -> Office:
    """A term from the beginning of the test on."""
    return take_office(yard)


def age(yard: Yard, days: float) -> None:
    """Let every end lie so many days back."""
    yard.sql("UPDATE jobs SET ended_at = ended_at - make_interval(secs => :s)", s=days * DAY_S)


def run_jobs(yard: Yard, number: int, **fields: Any) -> list[UUID]:
    """Have jobs end well."""
    with yard.scheduler(retention_days=0), ScriptedWorker(yard):
        job_ids = yard.submit(number, **fields)
        yard.wait_for(JobState.SUCCEEDED, *job_ids)
    return job_ids


def test_a_leader_deletes_what_is_old_and_goes_on_serving(yard: Yard) -> None:
    with ScriptedWorker(yard):
        with yard.scheduler(retention_days=0):
            yard.wait_for(JobState.SUCCEEDED, *yard.submit(5))
            age(yard, 31)
            young = yard.submit(2)
            yard.wait_for(JobState.SUCCEEDED, *young)
        with yard.scheduler():
            eventually(lambda: yard.counts() == {"succeeded": 2}, what="only the young")
            more = yard.submit(3)
            yard.wait_for(JobState.SUCCEEDED, *more)

    assert {row.job_id for row in yard.sql("SELECT job_id FROM jobs")} == {*young, *more}
    assert yard.sql("SELECT count(*) FROM job_keys")[0][0] == 10


def test_zero_days_keep_everything_forever(yard: Yard, tmp_path: Path) -> None:
    run_jobs(yard, 3)
    office = take_office(yard)
    age(yard, 10_000)
    unused(yard, tmp_path, "old")

    assert not Retention(office, 0.0).delete_batch()
    AdapterCollector(office, tmp_path, 0.0).sweep()

    assert yard.counts() == {"succeeded": 3}
    assert revision_states(yard) == {"sha256:old": ("active", False)}


def test_a_successor_goes_on_where_a_leader_was_stopped(yard: Yard) -> None:
    run_jobs(yard, 7)
    office = take_office(yard)
    age(yard, 31)

    assert Retention(office, 30 * DAY_S, batch_jobs=3).delete_batch()
    left = sum(yard.counts().values())
    successor = Retention(office, 30 * DAY_S, batch_jobs=3)
    rounds = 1
    while successor.delete_batch():
        rounds += 1

    assert left <= 4
    assert yard.counts() == {}
    assert rounds <= 3
    tables = ("job_inputs", "job_outputs", "attempts")
    assert [yard.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables] == [0, 0, 0]


# Adapter files


def unused(yard: Yard, store: Path, name: str) -> str:
    """Add an adapter with files and remove its name again; answers its revision."""
    digest = yard.add_adapter(name)
    folder = revision_folder(store, digest)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    yard.database.run(lambda c: AdapterRepository(c).remove(yard.pool, name))
    return digest


def revision_states(yard: Yard) -> dict[str, tuple[str, bool]]:
    rows = yard.sql("SELECT digest, state, unused_since IS NOT NULL AS unused FROM adapter_revisions")
    return {row.digest: (row.state, row.unused) for row in rows}


def unused_for(yard: Yard, days: float) -> None:
    yard.sql(
        "UPDATE adapter_revisions SET unused_since = now() - make_interval(secs => :s) "
        "WHERE unused_since IS NOT NULL",
        s=days * DAY_S,
    )


def collecting(yard: Yard, office: Office, store: Path, *names: str) -> list[str]:
    """Bring unused revisions to the brink."""
    digests = [unused(yard, store, name) for name in names]
    collector = AdapterCollector(office, store, 30 * DAY_S)
    sweep(collector)
    unused_for(yard, 31)
    sweep(collector)
    assert {revision_states(yard)[digest] for digest in digests} == {("collecting", True)}
    assert all(revision_folder(store, digest).exists() for digest in digests)
    return digests


def sweep(collector: AdapterCollector) -> None:
    """Make one sweep, files included."""
    collector.sweep()
    eventually(lambda: threads() == 0, what="the end of the sweep")


def threads() -> int:
    return sum(thread.name == "adapter-files" for thread in threading.enumerate())


def admit(yard: Yard, digest: str) -> UUID:
    job = new_job(adapter="sql", revision=digest)
    yard.database.run(lambda c: AdmissionRepository(c).admit(yard.pool, [job]))
    return job.job_id


def test_files_leave_one_sweep_after_their_revision_was_unused_for_long_enough(
    yard: Yard, office: Office, tmp_path: Path
) -> None:
    used = yard.add_adapter("used")
    revision_folder(tmp_path, used).mkdir()
    (digest,) = collecting(yard, office, tmp_path, "old")

    sweep(AdapterCollector(office, tmp_path, 30 * DAY_S))

    assert revision_states(yard)[digest][0] == "collected"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("ready")] == ["used"]
    assert revision_states(yard)[used] == ("active", False)


def test_a_revision_that_a_job_pins_meanwhile_is_kept(yard: Yard, office: Office, tmp_path: Path) -> None:
    (digest,) = collecting(yard, office, tmp_path, "old")

    admit(yard, digest)

    assert revision_states(yard)[digest] == ("active", False)
    assert not AdapterCollector(office, tmp_path, 30 * DAY_S).collect(tmp_path, digest)
    assert revision_folder(tmp_path, digest).exists()


def test_a_collector_waits_for_an_admission_that_has_pinned(
    yard: Yard, office: Office, tmp_path: Path
) -> None:
    (digest,) = collecting(yard, office, tmp_path, "old")
    done: list[bool] = []
    collector = AdapterCollector(office, tmp_path, 30 * DAY_S)
    thread = threading.Thread(target=lambda: done.append(collector.collect(tmp_path, digest)))

    with yard.database.transaction() as admitting:
        AdapterRepository(admitting).pin(yard.pool, [digest])
        thread.start()
        eventually(lambda: waits_for_lock(yard), what="the collector at the lock")
        AdmissionRepository(admitting).admit(yard.pool, [new_job(adapter="old", revision=digest)])
    thread.join(10.0)

    assert done == [False]
    assert revision_folder(tmp_path, digest).exists()
    assert revision_states(yard)[digest] == ("active", False)


def waits_for_lock(yard: Yard) -> bool:
    return bool(yard.sql("SELECT FROM pg_locks WHERE NOT granted"))


def test_an_adapter_added_again_while_it_is_collected_gets_its_files_back(
    yard: Yard, office: Office, tmp_path: Path
) -> None:
    (digest,) = collecting(yard, office, tmp_path, "old")
    assert AdapterCollector(office, tmp_path, 30 * DAY_S).collect(tmp_path, digest)
    assert not revision_folder(tmp_path, digest).exists()

    yard.database.run(lambda c: AdapterRepository(c).keep(digest))
    assert revision_states(yard)[digest][0] == "collected"
    yard.add_adapter("old")

    assert revision_states(yard)[digest] == ("active", False)


def test_files_of_a_revision_that_another_pool_serves_stay(
    yard: Yard, office: Office, tmp_path: Path
) -> None:
    (digest,) = collecting(yard, office, tmp_path, "old")
    yard.sql("INSERT INTO adapter_revisions (pool, digest, rank, targets, bytes) "
             "VALUES ('other', :d, 4, '{}', 1)", d=digest)  # fmt: skip

    assert not AdapterCollector(office, tmp_path, 30 * DAY_S).collect(tmp_path, digest)

    assert revision_folder(tmp_path, digest).exists()


def test_what_a_dead_leader_had_set_aside_is_removed_or_put_back(
    yard: Yard, office: Office, tmp_path: Path
) -> None:
    gone, needed = collecting(yard, office, tmp_path, "gone", "needed")
    for digest in (gone, needed):
        folder = revision_folder(tmp_path, digest)
        folder.rename(tmp_path / f"{SET_ASIDE}{folder.name}")
    admit(yard, needed)

    sweep(AdapterCollector(office, tmp_path, 30 * DAY_S))

    assert revision_states(yard)[gone][0] == "collected"
    assert not list(tmp_path.glob(f"{SET_ASIDE}*"))
    assert not revision_folder(tmp_path, gone).exists()
    assert revision_folder(tmp_path, needed).exists()
