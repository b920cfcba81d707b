"""The engine's host, with an engine whose answers the test writes."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.states import JobState
from tests.polling import eventually
from tests.unit.workers.batch_jobs import REVISION, batch_job, engine_output
from workers.engine.core.errors import EngineDied
from workers.engine.core.outputs import RequestOutput
from workers.engine.lora.residency.residency_log import ResidencyChange
from workers.engine.serving.messages import (
    AbortRequest,
    AddRequest,
    EngineEvents,
    PrefetchAdapter,
    Started,
    TokenDelta,
)
from workers.engine.serving.process import EngineProcess
from workers.engine_host import EngineHost
from workers.holding import HoldingTable
from workers.outcomes import Outcome
from workers.requests import AdapterIds, request_id
from workers.token_writer import Piece
from workers.vitals import Room, Vitals


class ScriptedEngine:
    """Takes commands and says what it is told to say."""

    def __init__(self) -> None:
        self.commands: list[Any] = []
        self.events: queue.Queue[EngineEvents | EngineDied] = queue.Queue()
        self.stopped = False

    def send(self, command: Any) -> None:
        self.commands.append(command)

    def receive(self, timeout_s: float) -> EngineEvents | None:
        try:
            said = self.events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(said, EngineDied):
            raise said
        return said

    def stop(self) -> None:
        self.stopped = True

    def say(
        self,
        *finished: RequestOutput,
        started: tuple[str, ...] = (),
        residency: tuple[ResidencyChange, ...] = (),
        deltas: tuple[TokenDelta, ...] = (),
    ) -> None:
        """Answer as if a step had ended."""
        self.events.put(
            EngineEvents(
                started=tuple(map(Started, started)),
                finished=finished,
                residency=residency,
                epoch=1,
                free_seqs=3,
                free_kv_blocks=30,
                busy_ms=1.0,
                waiting=0,
                deltas=deltas,
            )
        )

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """List the commands of one kind."""
        return [command for command in self.commands if isinstance(command, kind)]


class Yard:
    """A host with its neighbours, which only take notes."""

    def __init__(self, *, caches_by_tenant: bool = False) -> None:
        self.engine = ScriptedEngine()
        self.holding = HoldingTable(lambda _task_id: None)
        self.vitals = Vitals(Room(8, 80))
        self.outcomes: list[Outcome] = []
        self.received_jobs: list[BatchJob] = []
        self.started_jobs: list[BatchJob] = []
        self.revoked: set[str] = set()
        self.deaths: list[EngineDied] = []
        self.broken: list[str] = []
        self.pieces: list[Piece] = []
        self.has_room = True
        self.host = EngineHost(
            cast("EngineProcess", self.engine),
            self.holding,
            self,
            self,
            AdapterIds(Path("/store")),
            self.vitals,
            is_revoked=lambda name: name in self.revoked,
            on_died=self.deaths.append,
            on_broken=self.broken.append,
            caches_by_tenant=caches_by_tenant,
            on_text=self.pieces.append,
        )

    def put(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def received(self, job: BatchJob) -> None:
        self.received_jobs.append(job)

    def started(self, job: BatchJob) -> None:
        self.started_jobs.append(job)

    def join(self, *jobs: BatchJob) -> list[str]:
        """Let jobs join; answers what the engine calls them."""
        taken = self.host.join("task", jobs)
        assert taken == len(jobs)
        return [f"{job.job_id}:{job.attempt}" for job in jobs]

    def await_adds(self, count: int) -> list[AddRequest]:
        """Wait until the engine has been asked so many times."""
        eventually(lambda: len(self.engine.of_kind(AddRequest)) == count, what=f"{count} requests")
        return self.engine.of_kind(AddRequest)

    def await_outcomes(self, count: int) -> list[JobState]:
        """Wait for so many ends."""
        eventually(lambda: len(self.outcomes) == count, what=f"{count} outcomes")
        return [outcome.ended.state for outcome in self.outcomes]


@pytest.fixture
def yard() -> Iterator[Yard]:
    yard = Yard()
    yard.host.start()
    yield yard
    yard.host.close()
    assert yard.engine.stopped


def test_a_job_goes_through_the_engine_once(yard: Yard) -> None:
    job = batch_job()
    (name,) = yard.join(job)

    assert yard.host.join("task", [job]) == 0
    assert [request.request_id for request in yard.await_adds(1)] == [name]
    yard.engine.say(started=(name,))
    yard.engine.say(engine_output(name))

    assert yard.await_outcomes(1) == [JobState.SUCCEEDED]
    assert yard.received_jobs == yard.started_jobs == [job]
    assert yard.vitals.room == Room(3, 30)


def test_text_of_a_job_that_streams_goes_on_with_its_place(yard: Yard) -> None:
    job = batch_job(stream=True)
    (name,) = yard.join(job)
    texts = ["", "h\x00", "ello"]

    yard.engine.say(started=(name,), deltas=tuple(TokenDelta(name, 0, text, 1) for text in texts))
    yard.engine.say(engine_output(name), deltas=(TokenDelta(f"{uuid4()}:1", 0, "lost", 1),))

    assert yard.await_outcomes(1) == [JobState.SUCCEEDED]
    key = JobAttempt(job.job_id, job.attempt)
    assert yard.pieces == [Piece(key, 1, 0, "h\ufffd"), Piece(key, 2, 2, "ello")]


def test_a_job_that_is_being_stopped_streams_no_more(yard: Yard) -> None:
    job = batch_job(stream=True)
    (name,) = yard.join(job)
    yard.await_adds(1)

    yard.host.fence([JobAttempt(job.job_id, job.attempt)])
    yard.engine.say(deltas=(TokenDelta(name, 0, "late", 1),))
    yard.engine.say(engine_output(name, "abort"))

    yard.await_outcomes(1)
    assert yard.pieces == []


def test_a_full_committer_holds_requests_back_but_no_commands(yard: Yard) -> None:
    yard.has_room = False
    first, _second = yard.join(batch_job(), batch_job())
    yard.host.prefetch([REVISION])
    eventually(lambda: yard.engine.of_kind(PrefetchAdapter), what="the command")
    assert yard.engine.of_kind(AddRequest) == []

    yard.has_room = True

    assert yard.await_adds(2)[0].request_id == first


def test_a_cancel_takes_back_what_was_not_sent_and_aborts_what_was(yard: Yard) -> None:
    sent = batch_job()
    (name,) = yard.join(sent)
    yard.await_adds(1)
    yard.has_room = False
    unsent = batch_job()
    yard.join(unsent)

    yard.host.cancel({sent.job_id, unsent.job_id})
    eventually(lambda: yard.engine.of_kind(AbortRequest), what="the abort")
    yard.engine.say(engine_output(name, "abort"))

    assert yard.await_outcomes(2) == [JobState.CANCELLED, JobState.CANCELLED]
    assert [abort.request_id for abort in yard.engine.of_kind(AbortRequest)] == [name]


@pytest.mark.parametrize("by_task", [False, True])
def test_a_revoke_cancels(yard: Yard, by_task: bool) -> None:
    job = batch_job()
    (name,) = yard.join(job)
    yard.await_adds(1)

    yard.revoked.add("task" if by_task else str(job.job_id))
    eventually(lambda: yard.engine.of_kind(AbortRequest), what="the abort")
    yard.engine.say(engine_output(name, "abort"))

    assert yard.await_outcomes(1) == [JobState.CANCELLED]


def test_a_draining_worker_gives_arriving_jobs_straight_back(yard: Yard) -> None:
    yard.host.refuse()

    yard.join(batch_job())

    assert yard.await_outcomes(1) == [JobState.QUEUED]
    assert yard.engine.commands == []


def test_only_jobs_that_have_not_started_are_released(yard: Yard) -> None:
    running, waiting = batch_job(), batch_job()
    names = yard.join(running, waiting)
    yard.await_adds(2)
    yard.engine.say(started=(names[0],))
    eventually(lambda: yard.started_jobs, what="the start")

    yard.host.release_waiting()
    eventually(lambda: yard.engine.of_kind(AbortRequest), what="the abort")

    assert [abort.request_id for abort in yard.engine.of_kind(AbortRequest)] == [names[1]]


def test_a_fenced_attempt_is_aborted(yard: Yard) -> None:
    job = batch_job()
    yard.join(job)
    yard.await_adds(1)
    (held,) = yard.holding.live()

    yard.host.fence([held.key])

    eventually(lambda: yard.engine.of_kind(AbortRequest), what="the abort")
    assert yard.engine.of_kind(AbortRequest)[0].request_id == request_id(held.key)


def test_a_request_the_engine_cannot_be_asked_is_rejected(yard: Yard) -> None:
    yard.join(batch_job(stop=tuple(str(number) for number in range(17))))

    assert yard.await_outcomes(1) == [JobState.REJECTED]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"request": {"prompt": "a", "of_later": 1}}, "unsupported_field"),
        ({"of_later": 1}, "unsupported_field"),
        ({"max_tokens": 10**9}, "unsupported_value"),
    ],
)
def test_a_job_of_a_later_release_is_rejected_and_its_neighbours_run(
    yard: Yard, changes: dict[str, Any], code: str
) -> None:
    good = batch_job()

    yard.join(batch_job(writer="9.1.0", **changes), good)

    assert yard.await_outcomes(1) == [JobState.REJECTED]
    error = yard.outcomes[0].ended.error
    assert error is not None
    assert error.code == code
    assert "written by lorayard 9.1.0, this is lorayard" in error.message
    assert [add.request_id for add in yard.await_adds(1)] == [f"{good.job_id}:1"]


def test_residency_reaches_the_vitals(yard: Yard) -> None:
    yard.engine.say(residency=(ResidencyChange(1, REVISION, "device"),))

    eventually(lambda: yard.vitals.has_news, what="residency")
    assert yard.vitals.whole().residency[0].revision == REVISION


def test_the_engines_death_is_told_once(yard: Yard) -> None:
    yard.engine.events.put(EngineDied(-9))

    eventually(lambda: yard.deaths, what="the death")
    assert [death.exitcode for death in yard.deaths] == [-9]


def test_tenants_that_share_no_cache_are_told_apart_by_their_salt() -> None:
    yard = Yard(caches_by_tenant=True)
    yard.host.start()
    yard.join(batch_job(tenant="acme"), batch_job(tenant="other"))

    assert [request.cache_salt for request in yard.await_adds(2)] == ["acme", "other"]
    yard.host.close()
