"""The engine's host, with an engine whose answers the test writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from db.errors import DatabaseUnavailable
from db.records import Aborts, JobAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.reading import UnreadableRequest
from lorayard.contract.states import JobState
from tests.polling import eventually
from tests.unit.workers.batch_jobs import REVISION, batch_job, engine_output
from tests.unit.workers.scripted_engine import ScriptedEngine
from workers.attempts import AttemptTable
from workers.engine.core.errors import EngineDied, EngineHung
from workers.engine.core.residency_change import ResidencyChange
from workers.engine.serving.messages import (
    AbortRequest,
    AddRequest,
    PrefetchAdapter,
    TokenDelta,
)
from workers.engine.serving.process import EngineProcess
from workers.engine.serving.step_board import Phase, Progress
from workers.engine_host import EngineHost
from workers.engine_status import Capacity, EngineStatus
from workers.engine_watch import ProgressLimit
from workers.outcomes import Outcome
from workers.requests import AdapterIds, parse_request_id, request_id
from workers.token_writer import Piece


class HostRig:
    """A host with its neighbours, which only take notes."""

    def __init__(self, *, caches_by_tenant: bool = False, limit_s: float = 600.0) -> None:
        self.engine = ScriptedEngine()
        self.attempts = AttemptTable(lambda _task_id: None)
        self.status = EngineStatus(Capacity(8, 80))
        self.outcomes: list[Outcome] = []
        self.received_jobs: list[BatchJob] = []
        self.started_jobs: list[BatchJob] = []
        self.unforeseen: BatchJob | None = None
        self.revoked: set[str] = set()
        self.deaths: list[EngineDied] = []
        self.broken: list[str] = []
        self.pieces: list[Piece] = []
        self.num_residency_changes = 0
        self.has_room = True
        self.limit = ProgressLimit(start_s=600.0, floor_s=limit_s)
        self.ledger_is_away = False
        self.cancelled: set[UUID] = set()
        self.leased_elsewhere: set[tuple[UUID, int]] = set()
        self.host = EngineHost(
            cast("EngineProcess", self.engine),
            self.attempts,
            self,
            self,
            AdapterIds(Path("/store")),
            self.status,
            is_revoked=lambda name: name in self.revoked,
            on_died=self.deaths.append,
            on_broken=self.broken.append,
            caches_by_tenant=caches_by_tenant,
            on_text=self.pieces.append,
            limit=self.limit,
            ask_aborts=self.ask_aborts,
        )

    def ask_aborts(self, held: Sequence[JobAttempt]) -> Aborts:
        if self.ledger_is_away:
            raise DatabaseUnavailable("away")
        return Aborts(
            cancelled=tuple(one.job_id for one in held if one.job_id in self.cancelled),
            not_mine=tuple(JobAttempt(*one) for one in self.leased_elsewhere),
        )

    def put(self, *outcomes: Outcome) -> None:
        self.outcomes += outcomes

    def received(self, job: BatchJob) -> None:
        if job is self.unforeseen:
            raise LookupError("nobody has thought of this")
        self.received_jobs.append(job)

    def started(self, job: BatchJob) -> None:
        self.started_jobs.append(job)

    def residency_changed(self) -> None:
        self.num_residency_changes += 1

    def join(self, *jobs: BatchJob) -> list[str]:
        """Let jobs join; returns what the engine calls them."""
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
def rig() -> Iterator[HostRig]:
    rig = HostRig()
    rig.host.start()
    yield rig
    rig.host.close()
    assert rig.engine.stopped


def test_a_job_goes_through_the_engine_once(rig: HostRig) -> None:
    job = batch_job()
    (name,) = rig.join(job)

    assert rig.host.join("task", [job]) == 0
    assert [request.request_id for request in rig.await_adds(1)] == [name]
    rig.engine.say(started=(name,))
    rig.engine.say(engine_output(name))

    assert rig.await_outcomes(1) == [JobState.SUCCEEDED]
    assert rig.received_jobs == rig.started_jobs == [job]
    assert rig.status.capacity == Capacity(3, 30)


def test_text_of_a_job_that_streams_goes_on_with_its_place(rig: HostRig) -> None:
    job = batch_job(stream=True)
    (name,) = rig.join(job)
    texts = ["", "h\x00", "ello"]

    rig.engine.say(started=(name,), deltas=tuple(TokenDelta(name, 0, text, 1) for text in texts))
    rig.engine.say(engine_output(name), deltas=(TokenDelta(f"{uuid4()}:1", 0, "lost", 1),))

    assert rig.await_outcomes(1) == [JobState.SUCCEEDED]
    key = JobAttempt(job.job_id, job.attempt)
    assert rig.pieces == [Piece(key, 1, 0, "h\ufffd"), Piece(key, 2, 2, "ello")]


def test_a_job_that_is_being_stopped_streams_no_more(rig: HostRig) -> None:
    job = batch_job(stream=True)
    (name,) = rig.join(job)
    rig.await_adds(1)

    rig.host.fence([JobAttempt(job.job_id, job.attempt)])
    rig.engine.say(deltas=(TokenDelta(name, 0, "late", 1),))
    rig.engine.say(engine_output(name, "abort"))

    rig.await_outcomes(1)
    assert rig.pieces == []


def test_a_full_committer_holds_requests_back_but_no_commands(rig: HostRig) -> None:
    rig.has_room = False
    first, _second = rig.join(batch_job(), batch_job())
    rig.host.prefetch([REVISION])
    eventually(lambda: rig.engine.of_kind(PrefetchAdapter), what="the command")
    assert rig.engine.of_kind(AddRequest) == []

    rig.has_room = True

    assert rig.await_adds(2)[0].request_id == first


def test_a_cancel_takes_back_what_was_not_sent_and_aborts_what_was(rig: HostRig) -> None:
    sent = batch_job()
    (name,) = rig.join(sent)
    rig.await_adds(1)
    rig.has_room = False
    unsent = batch_job()
    rig.join(unsent)

    rig.host.cancel({sent.job_id, unsent.job_id})
    eventually(lambda: rig.engine.of_kind(AbortRequest), what="the abort")
    rig.engine.say(engine_output(name, "abort"))

    assert rig.await_outcomes(2) == [JobState.CANCELLED, JobState.CANCELLED]
    assert [abort.request_id for abort in rig.engine.of_kind(AbortRequest)] == [name]


@pytest.mark.parametrize("by_task", [False, True])
def test_a_revoke_cancels(rig: HostRig, by_task: bool) -> None:
    job = batch_job()
    (name,) = rig.join(job)
    rig.await_adds(1)

    rig.revoked.add("task" if by_task else str(job.job_id))
    eventually(lambda: rig.engine.of_kind(AbortRequest), what="the abort")
    rig.engine.say(engine_output(name, "abort"))

    assert rig.await_outcomes(1) == [JobState.CANCELLED]


def test_a_draining_worker_gives_arriving_jobs_straight_back(rig: HostRig) -> None:
    rig.host.refuse()

    rig.join(batch_job())

    assert rig.await_outcomes(1) == [JobState.QUEUED]
    assert rig.engine.commands == []


def test_what_came_too_late_or_is_cancelled_never_reaches_the_engine(rig: HostRig) -> None:
    late, cancelled, ours = batch_job(), batch_job(), batch_job()
    rig.leased_elsewhere = {(late.job_id, late.attempt)}
    rig.cancelled = {cancelled.job_id}

    rig.join(late, cancelled, ours)

    assert rig.await_outcomes(2) == [JobState.QUEUED, JobState.CANCELLED]
    assert [add.request_id for add in rig.await_adds(1)] == [f"{ours.job_id}:{ours.attempt}"]
    assert rig.received_jobs == [ours]


def test_a_job_waits_for_a_ledger_that_is_away_and_can_be_cancelled_meanwhile(rig: HostRig) -> None:
    rig.ledger_is_away = True
    waits, unwanted = batch_job(), batch_job()
    rig.join(waits, unwanted)

    rig.host.cancel({unwanted.job_id})
    assert rig.await_outcomes(1) == [JobState.CANCELLED]
    assert rig.engine.commands == []
    rig.ledger_is_away = False

    assert [add.request_id for add in rig.await_adds(1)] == [f"{waits.job_id}:{waits.attempt}"]


def test_only_jobs_that_have_not_started_are_released(rig: HostRig) -> None:
    running, waiting = batch_job(), batch_job()
    names = rig.join(running, waiting)
    rig.await_adds(2)
    rig.engine.say(started=(names[0],))
    eventually(lambda: rig.started_jobs, what="the start")

    rig.host.release_waiting()
    eventually(lambda: rig.engine.of_kind(AbortRequest), what="the abort")

    assert [abort.request_id for abort in rig.engine.of_kind(AbortRequest)] == [names[1]]


def test_a_fenced_attempt_is_aborted(rig: HostRig) -> None:
    job = batch_job()
    rig.join(job)
    rig.await_adds(1)
    (held,) = rig.attempts.live()

    rig.host.fence([held.key])

    eventually(lambda: rig.engine.of_kind(AbortRequest), what="the abort")
    assert rig.engine.of_kind(AbortRequest)[0].request_id == request_id(held.key)


def test_a_request_the_engine_cannot_be_asked_is_rejected(rig: HostRig) -> None:
    rig.join(batch_job(stop=tuple(str(number) for number in range(17))))

    assert rig.await_outcomes(1) == [JobState.REJECTED]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"request": {"prompt": "a", "of_later": 1}}, "unsupported_field"),
        ({"of_later": 1}, "unsupported_field"),
        ({"max_tokens": 10**9}, "unsupported_value"),
    ],
)
def test_a_job_of_a_later_release_is_rejected_and_its_neighbours_run(
    rig: HostRig, changes: dict[str, Any], code: str
) -> None:
    good = batch_job()

    rig.join(batch_job(writer="9.1.0", **changes), good)

    assert rig.await_outcomes(1) == [JobState.REJECTED]
    error = rig.outcomes[0].ended.error
    assert error is not None
    assert error.code == code
    assert "written by lorayard 9.1.0, this is lorayard" in error.message
    assert [add.request_id for add in rig.await_adds(1)] == [f"{good.job_id}:1"]


def test_residency_reaches_the_vitals(rig: HostRig) -> None:
    rig.engine.say(residency=(ResidencyChange(1, REVISION, "device"),))

    eventually(lambda: rig.status.has_news, what="residency")
    assert rig.status.whole().residency[0].revision == REVISION


def test_the_engines_death_is_told_once(rig: HostRig) -> None:
    rig.engine.events.put(EngineDied(-9))

    eventually(lambda: rig.deaths, what="the death")
    assert [death.exitcode for death in rig.deaths] == [-9]


def test_tenants_that_share_no_cache_are_told_apart_by_their_salt() -> None:
    rig = HostRig(caches_by_tenant=True)
    rig.host.start()
    rig.join(batch_job(tenant="acme"), batch_job(tenant="other"))

    assert [request.cache_salt for request in rig.await_adds(2)] == ["acme", "other"]
    rig.host.close()


def test_a_hung_engine_is_given_up_and_its_step_is_named(rig: HostRig) -> None:
    names = rig.join(batch_job(), batch_job())
    rig.await_adds(2)
    key = parse_request_id(names[0])
    strange = f"{uuid4()}:1"

    rig.engine.word = Progress(Phase.STEPPING, num_steps=1, request_ids=(names[0], strange))
    named = rig.host.in_step()
    rig.engine.word = Progress(Phase.STEPPING, num_steps=1, request_ids=None)
    rig.engine.say(started=(names[1],))
    eventually(lambda: rig.host.in_step() == [parse_request_id(names[1])], what="all that runs")

    assert named == [key]


def test_what_was_cancelled_ends_although_the_engine_does_not_answer() -> None:
    rig = HostRig(limit_s=2.0)
    rig.engine.word, rig.engine.num_sent = Progress(Phase.STEPPING, num_steps=1), 1
    cancelled, running, late = batch_job(), batch_job(), batch_job(first_token_within_s=0.1)
    rig.host.start()
    rig.join(cancelled, running, late)
    rig.await_adds(3)

    rig.host.cancel([cancelled.job_id])

    eventually(lambda: len(rig.outcomes) == 2, what="the ends of two jobs")
    assert {outcome.ended.job_id: outcome.ended.state for outcome in rig.outcomes} == {
        cancelled.job_id: JobState.CANCELLED,
        late.job_id: JobState.EXPIRED,
    }
    eventually(lambda: rig.deaths, what="the end of the engine")
    assert isinstance(rig.deaths[0], EngineHung)
    rig.host.close()


def test_a_job_that_cannot_be_read_ends_as_rejected(rig: HostRig) -> None:
    key = JobAttempt(uuid4(), 3)

    rig.host.reject("task", key, UnreadableRequest("unreadable_job", "no prompt"))

    assert rig.await_outcomes(1) == [JobState.REJECTED]
    assert rig.outcomes[0].key == key


def test_a_job_that_cannot_be_taken_in_fails_alone(rig: HostRig) -> None:
    first, odd, last = batch_job(), batch_job(), batch_job()
    rig.unforeseen = odd
    names = rig.join(first, odd, last)

    assert [request.request_id for request in rig.await_adds(2)] == [names[0], names[2]]
    assert rig.await_outcomes(1) == [JobState.FAILED]
    assert rig.outcomes[0].ended.job_id == odd.job_id
