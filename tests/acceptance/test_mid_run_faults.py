"""Whatever is killed, every accepted job ends once, rightly, and is charged once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest

from db import Database
from db.records import ListedAdapter
from db.repositories.adapters import AdapterRepository
from db.repositories.store_failures import StoreFailureRepository
from examples.demo.stage import MAX_RANK, add_adapters, await_catalogue
from examples.demo.workload import ADAPTERS_DIR, MODEL_DIR
from examples.tiny.tasks import TASKS, prompt
from lorayard import JobState
from lorayard.cli import main
from lorayard.local.postgres_server import plain_url
from lorayard.server.adapter_store import revision_folder
from tests.acceptance.stack_rig import PATIENCE_S, Asked, StackRig, Usage
from tests.polling import eventually

JOBS = 300
MIDWAY = 0.3


def test_a_worker_is_killed_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "worker-killed")
    rig.await_share(asked, MIDWAY)

    rig.stack.kill("worker-1")

    results = rig.check(asked, "worker-killed")
    assert max(result.attempt for result in results) >= 2, "the worker held nothing when it was killed"
    rig.stack.restart("worker-1")


def test_the_scheduler_is_killed_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "scheduler-killed")
    rig.await_share(asked, MIDWAY)

    rig.stack.kill("scheduler")
    rig.stack.restart("scheduler")

    rig.check(asked, "scheduler-killed")


def test_a_worker_comes_and_another_drains_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "rolling")
    rig.await_share(asked, MIDWAY)

    rig.stack.start_worker()
    assert rig.stack.stop_part("worker-1") == 0

    rig.check(asked, "rolling")
    assert rig.wasted_ms("rolling") == 0.0, "something ran twice"


def test_redis_restarts_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "redis-restarted")
    rig.await_share(asked, MIDWAY)

    rig.stack.restart("redis")

    rig.check(asked, "redis-restarted")


def test_postgres_restarts_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "postgres-restarted")
    rig.await_share(asked, MIDWAY)

    rig.stack.restart("postgres")

    rig.check(asked, "postgres-restarted")


def test_redis_and_postgres_are_killed_in_mid_run(rig: StackRig) -> None:
    asked = rig.ask(JOBS, "servers-killed")
    rig.await_share(asked, MIDWAY)

    rig.stack.kill("redis")
    rig.stack.kill("postgres")
    rig.stack.restart("postgres")
    rig.stack.restart("redis")

    rig.check(asked, "servers-killed")


def test_one_idempotency_key_is_submitted_a_hundred_times_at_once(rig: StackRig) -> None:
    ready = Barrier(100)

    def submit(_: int) -> Asked:
        ready.wait()
        handle = rig.client.submit(
            prompt("onceonly"), adapter="upper", max_tokens=24, tenant="idempotent", idempotency_key="the-key"
        )
        return Asked(handle, TASKS["upper"].answer("onceonly"))

    with ThreadPoolExecutor(100) as pool:
        asked = list(pool.map(submit, range(100)))

    assert len({item.handle.id for item in asked}) == 1
    results = [item.handle.result(60) for item in asked]
    assert {result.output for result in results} == {"ONCEONLY"}
    assert rig.usage("idempotent") == Usage(1, results[0].prompt_tokens, results[0].completion_tokens)
    with psycopg.connect(plain_url(rig.stack.postgres.url)) as connection:
        attempts = connection.execute(
            "SELECT count(*) FROM attempts WHERE job_id = %s", (asked[0].handle.id,)
        ).fetchone()
    assert attempts == (1,)


class OneStore:
    """The adapter store of a pool that one worker is left of, and adapters that it has never read."""

    def __init__(self, rig: StackRig, folder: Path) -> None:
        env = rig.stack.client_env()
        self._rig, self._folder, self._env = rig, folder, env
        self.path = Path(env["LORAYARD_ADAPTER_STORE"])
        self.database = Database(env["LORAYARD_DATABASE_URL"], name="acceptance")

    def add(self, *names: str) -> None:
        """Add copies of the first task's adapter that are revisions of their own."""
        for name in names:
            shutil.copytree(ADAPTERS_DIR / "upper", self._folder / name)
            config = self._folder / name / "adapter_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_version": name}))
        folders = {name: self._folder / name for name in names}
        add_adapters(self.database, self._env, folders, model=MODEL_DIR, max_rank=MAX_RANK)
        await_catalogue(self._rig.client, names)

    def ask(self, *names: str | None, each: int = 1) -> list[Asked]:
        """Submit jobs for adapters, or for the base."""
        return [
            Asked(
                self._rig.client.submit(prompt("store"), adapter=name, max_tokens=24, tenant="store"),
                "store" if name is None else "STORE",
            )
            for name in names
            for _ in range(each)
        ]

    def listed(self, name: str) -> ListedAdapter:
        """Look an adapter up as `lorayard adapters list` does."""
        found = self.database.run(lambda c: AdapterRepository(c).listed(None))
        return next(one for one in found if one.name == name)

    def pause_of(self, name: str) -> float:
        """How long the store is left alone with an adapter, in seconds."""
        adapter = self.listed(name)
        failures = self.database.run(lambda c: StoreFailureRepository(c).listed(adapter.pool))
        return max((one.pause_s for one in failures if one.digest == adapter.revision), default=0.0)


def rows_of(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Run a command of `lorayard` that lists rows."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert not ended.value.code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def outputs(asked: list[Asked]) -> list[str | None]:
    return [item.handle.result(PATIENCE_S).output for item in asked]


@pytest.fixture(scope="module")
def store(rig: StackRig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneStore]:
    """A pool of one worker, for the tests that come last: the other one does not come back."""
    rig.stack.stop_part("worker-2")
    store = OneStore(rig, tmp_path_factory.mktemp("adapters"))
    yield store
    store.database.dispose()


def test_a_store_is_away_for_a_while_and_the_jobs_that_need_it_wait(
    rig: StackRig, store: OneStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in rig.stack.client_env().items():
        monkeypatch.setenv(name, value)
    store.add("read-before", "away-1", "away-2")
    assert outputs(store.ask("read-before")) == ["STORE"]
    aside = store.path.with_name("aside")

    store.path.rename(aside)
    waiting = store.ask("away-1", "away-2", each=5)
    assert outputs(asked := store.ask(None, "read-before")) == [item.answer for item in asked]
    eventually(lambda: store.pause_of("away-1") >= 4.0 <= store.pause_of("away-2"), PATIENCE_S, "third tries")

    def are_named() -> bool:
        """Whether whoever looks is told which adapters the store cannot give, and why."""
        adapters = {row["name"]: row for row in rows_of(["adapters", "list"], capsys)}
        return all(adapters[name]["state"] == "cooling" for name in ("away-1", "away-2"))

    eventually(are_named, PATIENCE_S, "two pauses")
    (worker,) = [row for row in rows_of(["workers"], capsys) if row["state"] == "ready"]
    assert "could not give 2 adapters" in worker["reason"]
    assert str(store.path) in worker["reason"]
    assert not any(item.handle.done() for item in waiting)
    aside.rename(store.path)

    results = [item.handle.result(PATIENCE_S) for item in waiting]
    assert {result.output for result in results} == {"STORE"}
    assert min(result.attempt for result in results) > 1
    with psycopg.connect(plain_url(rig.stack.postgres.url)) as connection:
        blamed = connection.execute("SELECT job_id FROM jobs WHERE strikes + losses > 0 AND tenant = 'store'")
        assert blamed.fetchall() == []
        states = connection.execute("SELECT DISTINCT state FROM adapter_revisions").fetchall()
    assert states == [("active",)]


def test_one_adapter_is_gone_from_a_store_that_gives_others(rig: StackRig, store: OneStore) -> None:
    names = [f"there-{number}" for number in range(4)]
    store.add("gone", *names)
    folder = revision_folder(store.path, store.listed("gone").revision)
    aside = folder.with_name("gone")

    folder.rename(aside)
    (lost,) = store.ask("gone")
    while not lost.handle.done() and names:
        tries = store.pause_of("gone")
        eventually(lambda: store.pause_of("gone") > tries or lost.handle.done(), PATIENCE_S, "another try")  # noqa: B023
        assert outputs(store.ask(names.pop())) == ["STORE"]
    result = lost.handle.result(PATIENCE_S, raise_on_failure=False)
    assert (result.state, result.error and result.error.code) == (JobState.REJECTED, "adapter_quarantined")
    assert store.listed("gone").state == "quarantined"
    assert f"there is no folder {folder}" in (store.listed("gone").reason or "")

    aside.rename(folder)
    eventually(lambda: store.listed("gone").state == "active", PATIENCE_S, "trust")
    await_catalogue(rig.client, ["gone"])
    assert outputs(store.ask("gone")) == ["STORE"]
