"""Takes jobs from the intake streams into the ledger: nothing is acknowledged before it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from db.errors import DatabaseError
from db.judge import Fault, fault_of, reason_of
from db.records import Admitted, FinishedJob, NewJob
from db.repositories.admission import AdmissionRepository
from db.repositories.results import fetch_finished
from lorayard.contract.messages import JobEnvelope, JobReply
from lorayard.contract.pool import PoolInfo
from lorayard.contract.reading import receive_job, unreadable_reply
from lorayard.contract.result import JobError
from lorayard.contract.states import JobState
from lorayard.server.replies import expired_reply, send_replies, state_reply
from scheduler.admission import judge
from scheduler.catalogue import Catalogue
from scheduler.flower_reporter import FlowerReporter
from scheduler.leader_context import LeaderContext
from scheduler.rejects import Reject, put_aside
from scheduler.shares import Shares
from scheduler.streams import BLOCK_JOBS, LeaderStreams, StreamEntry
from scheduler.tenancy import Tenancy

MAX_TOLD_CHARS: Final = 300

logger = structlog.get_logger(__name__)


class Offer(NamedTuple):
    """One readable stream entry; `refusal` says what in it is not known here."""

    entry: StreamEntry
    envelope: JobEnvelope
    refusal: JobError | None


class IntakeVerdict(NamedTuple):
    """What became of one offer; `known` is the job as the ledger has it, if there is more to tell."""

    offer: Offer
    job: NewJob
    admitted: Admitted
    known: FinishedJob | None


@dataclass(frozen=True, slots=True)
class Intake:
    """The door of one term; raises redis-py's errors, DatabaseUnavailable and Deposed."""

    context: LeaderContext
    streams: LeaderStreams
    catalogue: Catalogue
    tenancy: Tenancy
    limits: PoolInfo
    flower: FlowerReporter
    shares: Shares

    def admit(self, entries: Sequence[StreamEntry]) -> int:
        """Admit what can be admitted, put aside the rest, then acknowledge; returns how many jobs are new."""
        new: list[int] = []
        for start in range(0, len(entries), BLOCK_JOBS):
            self.context.items.attempt_all(
                "intake",
                entries[start : start + BLOCK_JOBS],
                lambda entry: entry.name,
                lambda block: new.append(self._admit_block(block)),
                self._give_up,
            )
        return sum(new)

    def _admit_block(self, entries: Sequence[StreamEntry]) -> int:
        offers = self._readable(entries)
        verdicts = self._commit(offers, self._now_ms())
        self.shares.confirm()
        self._announce(verdicts)
        self.streams.acknowledge(entries)
        self._show(verdicts)
        return sum(verdict.admitted.outcome == "new" for verdict in verdicts)

    def _readable(self, entries: Sequence[StreamEntry]) -> list[Offer]:
        offers, rejects = [], []
        for entry in entries:
            try:
                envelope, refusal = receive_job(entry.fields)
            except ValueError as error:
                rejects.append(Reject(entry, _reason(error)))
            else:
                offers.append(Offer(entry, envelope, refusal))
        self._put_aside(rejects)
        return offers

    def _commit(self, offers: Sequence[Offer], now_ms: int) -> list[IntakeVerdict]:
        """Admit in one transaction; if Postgres refuses a job, halve until it stands alone."""
        if not offers:
            return []
        try:
            return self.context.transact(lambda connection: self._offer(connection, offers, now_ms))
        except DatabaseError:
            raise
        except Exception as error:
            if fault_of(error) not in (Fault.ROW, Fault.REPEAT):
                raise
            if len(offers) == 1:
                return self._admit_alone(offers[0], now_ms, error)
        middle = len(offers) // 2
        return self._commit(offers[:middle], now_ms) + self._commit(offers[middle:], now_ms)

    def _admit_alone(self, offer: Offer, now_ms: int, error: Exception) -> list[IntakeVerdict]:
        """Put a refused job aside; one whose row was just written by somebody else is looked at once more."""
        if fault_of(error) is Fault.REPEAT:
            try:
                return self.context.transact(lambda connection: self._offer(connection, [offer], now_ms))
            except IntegrityError as refusal:
                error = refusal
        self._put_aside([Reject(offer.entry, _reason(error))])
        return []

    def _offer(self, connection: Connection, offers: Sequence[Offer], now_ms: int) -> list[IntakeVerdict]:
        self.catalogue.refresh(connection)
        tenants = self.tenancy.admit(connection, {offer.envelope.spec.tenant for offer in offers})
        jobs = [
            judge(
                offer.envelope,
                now_ms - int(offer.entry.entry_id.partition("-")[0]),
                catalogue=self.catalogue,
                limits=self.limits,
                tenants=tenants,
                refusal=offer.refusal,
            )
            for offer in offers
        ]
        admitted = AdmissionRepository(connection).admit(self.context.pool, jobs)
        new = {job.spec.tenant for job, one in zip(jobs, admitted, strict=True) if one.outcome == "new"}
        self.shares.arrive(connection, new)
        to_tell = [a.job_id for a in admitted if a.outcome == "repeat" or (a.state and a.state.is_terminal)]
        known = {job.job_id: job for job in fetch_finished(connection, to_tell)}
        return [
            IntakeVerdict(offer, job, one, known.get(one.job_id))
            for offer, job, one in zip(offers, jobs, admitted, strict=True)
        ]

    def _give_up(self, entry: StreamEntry, error: Exception) -> None:
        """Put an entry aside at which the leader itself has failed again and again."""
        self._put_aside([Reject(entry, _reason(error))])
        self.streams.acknowledge([entry])

    def _put_aside(self, rejects: Sequence[Reject]) -> None:
        """Keep entries that cannot be admitted, and tell who waits for a job that is not in the ledger."""
        if not rejects:
            return
        put_aside(self.context, rejects)
        told = [unreadable_reply(entry.fields, reason[:MAX_TOLD_CHARS]) for entry, reason in rejects]
        answers = [answer for answer in told if answer is not None]
        if not answers:
            return
        job_ids = [reply.job_id for _, reply in answers]
        known = {job.job_id for job in self.context.transact(lambda c: fetch_finished(c, job_ids))}
        news = [answer for answer in answers if answer[1].job_id not in known]
        self.context.tell(lambda pipeline: send_replies(pipeline, news))

    def _announce(self, verdicts: Sequence[IntakeVerdict]) -> None:
        replies = [
            (verdict.job.reply_to, reply)
            for verdict in verdicts
            if verdict.job.reply_to and (reply := _reply(verdict, self.context.pool)) is not None
        ]
        self.context.tell(lambda pipeline: send_replies(pipeline, replies))

    def _show(self, verdicts: Sequence[IntakeVerdict]) -> None:
        for verdict in verdicts:
            if verdict.admitted.outcome != "new":
                continue
            spec = verdict.job.spec
            self.flower.admitted(verdict.job.job_id, spec.adapter, spec.tenant)
            if verdict.known is not None:
                self.flower.ended([verdict.known])
                error = verdict.job.rejection
                logger.info(
                    "job.ended_at_birth",
                    job_id=str(verdict.job.job_id),
                    state=verdict.known.state.value,
                    error_code=error.code if error else None,
                )
        outcomes = [verdict.admitted.outcome for verdict in verdicts]
        counts = {f"{kind}_jobs": outcomes.count(kind) for kind in ("new", "repeat", "conflict")}
        logger.info("jobs.admitted", **counts)

    def _now_ms(self) -> int:
        seconds, microseconds = self.context.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


def _reason(error: Exception) -> str:
    """Tell why an entry was put aside, without its values: they are the users' own."""
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
    return reason_of(error)


def _reply(verdict: IntakeVerdict, pool: str) -> JobReply | None:
    """Tell a caller what became of its submission, if it must know or wants to."""
    job_id, submission_id = verdict.job.job_id, verdict.job.submission_id
    if verdict.admitted.outcome == "conflict":
        error = JobError(code="idempotency_conflict", message=_conflict(verdict, pool))
        return JobReply(job_id=job_id, state=None, submission_id=submission_id, conflict=error)
    if verdict.known is not None:
        return state_reply(verdict.known.result, submission_id=submission_id)
    if verdict.admitted.outcome == "repeat":
        return expired_reply(job_id, submission_id=submission_id)
    if verdict.offer.envelope.confirm_ledger:
        return JobReply(job_id=job_id, state=JobState.QUEUED, submission_id=submission_id)
    return None


def _conflict(verdict: IntakeVerdict, pool: str) -> str:
    job_id, key = verdict.job.job_id, verdict.job.spec.idempotency_key
    if key is None:
        return f"another submission has the name {job_id}: submit without a job id of your own"
    if verdict.admitted.elsewhere is not None:
        return (
            f"the key {key!r} was used for job {job_id} in pool {verdict.admitted.elsewhere}, and this is "
            f"pool {pool}: take another key, or ask for that job by its id"
        )
    return (
        f"the key {key!r} was used for job {job_id} with another payload: "
        "take another key, or submit the same payload"
    )
