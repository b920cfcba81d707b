"""The lease is renewed whatever else fails, against a scripted ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from db.errors import DatabaseUnavailable
from db.records import Aborts, JobAttempt
from lorayard.contract.messages import HeldJob
from tests.polling import eventually
from workers.attempts import AttemptTable
from workers.engine_host import EngineHost
from workers.lease import LeaseKeeper
from workers.ledger_health import LedgerHealth
from workers.registration import Registration


class ScriptedRegistration:
    """Raises what each call is told to, else answers."""

    lease_s = 0.05

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.raises: dict[str, Exception] = {}
        self.alive = True
        self.to_abort = Aborts()
        self.refusal: str | None = None

    def _say(self, call: str) -> None:
        self.calls.append(call)
        if call in self.raises:
            raise self.raises[call]

    def enter(self) -> str | None:
        self._say("enter")
        return self.refusal

    def renew(self) -> bool:
        self._say("renew")
        return self.alive

    def aborts(self, held: Sequence[HeldJob]) -> Aborts:
        self._say("aborts")
        return self.to_abort

    def report(self, held: Sequence[HeldJob], succeeded: int) -> None:
        self._say("report")


class ScriptedHost:
    """Remembers what it was told to stop."""

    def __init__(self) -> None:
        self.cancelled: set[Any] = set()
        self.fenced: set[JobAttempt] = set()

    def cancel(self, job_ids: frozenset[Any]) -> None:
        self.cancelled |= job_ids

    def fence(self, keys: Sequence[JobAttempt]) -> None:
        self.fenced |= set(keys)


class Bench:
    """A lease keeper with its neighbours."""

    def __init__(self) -> None:
        self.registration, self.host, self.health = ScriptedRegistration(), ScriptedHost(), LedgerHealth()
        self.registered: list[bool] = []
        self.lost: list[bool] = []
        self.refused: list[str] = []
        self.broken: list[str] = []
        self.heartbeats: list[Sequence[HeldJob]] = []
        self.keeper = LeaseKeeper(
            cast("Registration", self.registration),
            AttemptTable(lambda _: None),
            cast("EngineHost", self.host),
            health=self.health,
            on_registered=lambda: self.registered.append(True),
            heartbeat=self.heartbeats.append,
            on_lost=lambda: self.lost.append(True),
            on_refused=self.refused.append,
            on_broken=self.broken.append,
        )

    def count(self, call: str) -> int:
        """Tell how often the ledger was asked something."""
        return self.registration.calls.count(call)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.keeper.close()


def database_error(sqlstate: str) -> DBAPIError:
    return DBAPIError("UPDATE", {}, psycopg.errors.lookup(sqlstate)("no"))


ANYTHING = [
    DatabaseUnavailable("gone"),
    database_error("57014"),
    database_error("55P03"),
    database_error("25006"),
    database_error("22003"),
    ValueError("no"),
    RuntimeError("a bug"),
]


@pytest.mark.parametrize("error", ANYTHING, ids=repr)
@pytest.mark.parametrize("call", ["enter", "renew"])
def test_no_exception_ends_the_thread(bench: Bench, call: str, error: Exception) -> None:
    bench.registration.raises[call] = error
    bench.keeper.start()
    eventually(lambda: bench.count(call) >= 3)

    bench.registration.raises.clear()

    eventually(lambda: bench.health.has_renewed_within(10.0))
    assert bench.registered == [True]
    assert bench.lost == []


@pytest.mark.parametrize("call", ["aborts", "report"])
def test_what_follows_a_renewal_may_fail_as_long_as_it_likes(bench: Bench, call: str) -> None:
    bench.registration.raises[call] = database_error("55P03")
    bench.keeper.start()

    eventually(lambda: bench.count("renew") >= 5)

    assert bench.health.has_renewed_within(10.0)
    assert bench.count(call) >= 3


def test_the_leader_hears_of_the_worker_while_the_ledger_does_not_answer(bench: Bench) -> None:
    bench.registration.raises["renew"] = DatabaseUnavailable("gone")
    bench.keeper.start()

    eventually(lambda: len(bench.heartbeats) >= 3)

    assert bench.count("aborts") == 0


def test_a_lost_worker_renews_no_more(bench: Bench) -> None:
    bench.registration.alive = False
    bench.keeper.start()

    eventually(lambda: bench.lost)

    bench.keeper.close()
    assert (bench.count("renew"), bench.count("aborts")) == (1, 0)


def test_what_the_ledger_has_given_to_others_is_aborted(bench: Bench) -> None:
    cancelled, fenced = uuid4(), JobAttempt(uuid4(), 2)
    bench.registration.to_abort = Aborts((cancelled,), (fenced,))
    bench.keeper.start()

    eventually(lambda: bench.host.fenced)

    assert bench.host.cancelled == {cancelled}
    assert bench.host.fenced == {fenced}


@pytest.mark.parametrize("call", ["enter", "renew", "aborts", "report"])
def test_a_schema_of_another_release_stops_new_work_until_it_fits(bench: Bench, call: str) -> None:
    bench.registration.raises[call] = database_error("42703")
    bench.keeper.start()
    eventually(lambda: not bench.health.takes_work)

    bench.registration.raises.clear()

    eventually(lambda: bench.health.takes_work)


def test_a_loop_that_begins_anew_renews_and_registers_no_second_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, faults = bench.health.served, [RuntimeError("a bug")]

    def fail_once(part: str) -> None:
        if part == "renewal" and faults:
            raise faults.pop()
        served(part)

    monkeypatch.setattr(bench.health, "served", fail_once)
    bench.keeper.start()

    eventually(lambda: not faults and bench.count("renew") >= 3)

    assert bench.count("enter") == 1
    assert bench.registered == [True]
    assert bench.broken == []


def test_a_ready_file_that_cannot_be_written_keeps_no_lease_from_being_renewed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [OSError("disk full")] * 3

    def tell() -> None:
        if faults:
            raise faults.pop()
        bench.registered.append(True)

    monkeypatch.setattr(bench.keeper, "_on_registered", tell)
    bench.keeper.start()

    eventually(lambda: bench.registered)

    assert bench.count("enter") == 1
    assert bench.count("renew") >= 3


def test_a_lease_that_cannot_be_kept_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(part: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.health, "served", fail)
    bench.keeper.start()

    eventually(lambda: bench.broken)

    assert bench.broken == ["lease"]


def test_a_worker_that_its_pool_does_not_take_says_so_and_asks_no_more(bench: Bench) -> None:
    bench.registration.refusal = "another tokenizer"

    bench.keeper.start()

    eventually(lambda: bench.refused == ["another tokenizer"], 10.0)
    bench.keeper.close()
    assert bench.registration.calls == ["enter"]
    assert (bench.registered, bench.heartbeats, bench.broken) == ([], [], [])
