"""Answers clients on the control stream: cancels and lookups; revokes in Flower are cancels as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import Connection

from db.judge import reason_of
from db.records import CancelOutcome, FinishedJob
from db.repositories.jobs import JobRepository
from db.repositories.results import fetch_finished
from lorayard.contract.messages import PLACE_FIELD, Command, ControlMessage, JobReply
from lorayard.server.replies import expired_reply, send_replies, state_reply
from scheduler.endings import Endings
from scheduler.fleet import Fleet
from scheduler.forecast import Forecast
from scheduler.leader_context import LeaderContext
from scheduler.rejects import Reject, put_aside
from scheduler.streams import LeaderStreams, StreamEntry

MAX_LOOKUP_OUTPUT_BYTES: Final = 1_000_000
BLOCK_MESSAGES: Final = 100

logger = structlog.get_logger(__name__)


class Question(NamedTuple):
    """What a client wants, and whether it wants to know of the job's place as well."""

    message: ControlMessage
    wants_place: bool


@dataclass(frozen=True, slots=True)
class Control:
    """The control stream of one term; raises redis-py's errors, DatabaseUnavailable and Deposed."""

    context: LeaderContext
    streams: LeaderStreams
    fleet: Fleet
    endings: Endings
    forecast: Forecast

    def obey(self, entries: Sequence[StreamEntry]) -> None:
        """Do what clients ask, answer them, then acknowledge."""
        for start in range(0, len(entries), BLOCK_MESSAGES):
            block = entries[start : start + BLOCK_MESSAGES]
            self.context.items.attempt_all(
                "control", block, lambda entry: entry.entry_id, self._obey_block, self._put_aside
            )

    def _obey_block(self, block: Sequence[StreamEntry]) -> None:
        """Answer all, then acknowledge; what is not acknowledged is read again."""
        self._answer([question for entry in block if (question := _read(entry)) is not None])
        self.streams.acknowledge(block)

    def _put_aside(self, entry: StreamEntry, error: Exception) -> None:
        put_aside(self.context, [Reject(entry, reason_of(error))])
        self.streams.acknowledge([entry])

    def revoke(self, job_ids: Sequence[UUID]) -> None:
        """Cancel jobs at nobody's request stream: a revoke in Flower, which shows none before it is there."""
        self.context.items.attempt_all("revokes", job_ids, str, partial(self._cancel, may_come=False))

    def _cancel(self, job_ids: Sequence[UUID], *, may_come: bool = True) -> None:
        if job_ids:
            self._follow(self.context.transact(lambda c: _cancel_all(c, job_ids, may_come=may_come)))

    def _answer(self, questions: Sequence[Question]) -> None:
        messages = [question.message for question in questions]
        cancels = [message.job_id for message in messages if message.kind == "cancel"]
        self._cancel(cancels)
        asked = list(dict.fromkeys(message.job_id for message in messages if message.reply_to))
        known, left = self.context.transact(lambda connection: _look_up(connection, asked))
        answers = [
            (
                m.reply_to,
                self._placed(question, _answer_to(m, known.get(m.job_id), has_left=m.job_id in left)),
            )
            for question in questions
            if (m := question.message).reply_to is not None
        ]
        self.context.tell(lambda pipeline: send_replies(pipeline, answers))

    def _placed(self, question: Question, reply: JobReply) -> JobReply:
        """Say where an unfinished job stands, if that was asked for."""
        if not question.wants_place or reply.state is None or reply.state.is_terminal:
            return reply
        place = self.forecast.place(reply.job_id)
        return reply.model_copy(update={"queue_position": place.position, "eta_s": place.eta_s})

    def _follow(self, outcomes: Sequence[tuple[UUID, CancelOutcome]]) -> None:
        running: dict[str, list[UUID]] = {}
        for job_id, outcome in outcomes:
            logger.info("job.cancel_asked", job_id=str(job_id), state=outcome.state)
            if outcome.incarnation is not None:
                running.setdefault(outcome.incarnation, []).append(job_id)
        self.endings.follow([outcome.finished for _, outcome in outcomes if outcome.finished])
        for incarnation, job_ids in running.items():
            self.context.items.attempt(
                "worker_cancel", incarnation, partial(self._command, incarnation, job_ids)
            )

    def _command(self, incarnation: str, job_ids: Sequence[UUID]) -> None:
        """Tell a worker at once; should it miss this, the answer to its next heartbeat tells it again."""
        if self.fleet.find(incarnation) is None:
            return
        command = Command(kind="cancel", term=self.context.term, job_ids=tuple(job_ids))
        self.context.command_worker(incarnation, command)


def _read(entry: StreamEntry) -> Question | None:
    try:
        return Question(ControlMessage.from_entry(dict(entry.fields)), PLACE_FIELD in entry.fields)
    except ValueError as error:
        logger.warning("control.malformed", entry_id=entry.entry_id, error=str(error)[:300])
        return None


def _cancel_all(
    connection: Connection, job_ids: Sequence[UUID], *, may_come: bool
) -> list[tuple[UUID, CancelOutcome]]:
    jobs = JobRepository(connection)
    # In one order for all, like every statement that locks several rows.
    return [(job_id, jobs.cancel(job_id, may_come=may_come)) for job_id in sorted(set(job_ids))]


def _look_up(connection: Connection, asked: Sequence[UUID]) -> tuple[dict[UUID, FinishedJob], set[UUID]]:
    """Find jobs, and of the others those whose key is remembered."""
    known = {job.job_id: job for job in fetch_finished(connection, asked)}
    return known, JobRepository(connection).left([job_id for job_id in asked if job_id not in known])


def _answer_to(message: ControlMessage, job: FinishedJob | None, *, has_left: bool) -> JobReply:
    if job is None and has_left:
        return expired_reply(message.job_id, request_id=message.request_id)
    if job is None:
        return JobReply(job_id=message.job_id, state=None, request_id=message.request_id)
    is_short = len((job.result.output or "").encode()) <= MAX_LOOKUP_OUTPUT_BYTES
    reply = state_reply(job.result, whole=is_short)
    return reply.model_copy(update={"request_id": message.request_id})
