"""Jobs: the narrow row that changes, and beside it what is written once.

The states and what may follow which are `lorayard.contract.states.TRANSITIONS`; each repository method that
moves a row names in its WHERE the state it comes from:

    to leased      LeaseRepository.lease                                        from queued
    to queued      LeaseRepository.release, .lose_worker, FinishRepository.finish  from leased
    to succeeded   FinishRepository.finish                                      from leased
    to failed      FinishRepository.finish                                      from leased
    to cancelled   JobRepository.cancel                                         from queued
                   LeaseRepository.release, .lose_worker, FinishRepository.finish  from leased
    to expired     JobRepository.expire_due                                     from queued
                   FinishRepository.finish                                      from leased
    to rejected    AdapterRepository.reject_quarantined                         from queued
                   FinishRepository.finish                                      from leased
    to dead        LeaseRepository.lose_worker                                  from leased

There are no foreign keys between these tables: rows are born together in one transaction and leave together
(`RetentionRepository.delete_jobs`, docs/retention.md), and a key check on each insert would cost the hot path
a lock on `jobs`. Keys and usage stay.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Sequence, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.table import Table, one_of
from lorayard.contract.states import JobState

ADMIT_SEQ = Sequence("jobs_admit_seq", metadata=Table.metadata)
"""Order of admission; gaps are harmless."""

HOT_TABLE = {
    "fillfactor": "80",
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}
"""A job's row changes at least twice in its life, so its table is vacuumed early and kept roomy."""

ATTEMPT_ENDS = ("succeeded", "failed", "cancelled", "expired", "rejected", "dead", "released", "lost")


class Job(Table):
    """One job, without its texts."""

    __tablename__ = "jobs"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    admit_seq: Mapped[int] = mapped_column(BigInteger, ADMIT_SEQ, server_default=ADMIT_SEQ.next_value())
    pool: Mapped[str]
    tenant: Mapped[str]
    adapter: Mapped[str | None]
    revision: Mapped[str | None]
    priority: Mapped[int] = mapped_column(SmallInteger)
    """Place in `lorayard.contract.job.PRIORITIES`; 0 is the most urgent."""
    state: Mapped[str]
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    strikes: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    losses: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """Workers that were lost with it, nobody knowing why."""
    suspect_group: Mapped[UUID | None]
    """Jobs of one group may have ended an engine together: they run with no others."""
    incarnation: Mapped[str | None]
    """Who holds it, and after the end who held it last."""
    reply_to: Mapped[str | None]
    has_callback: Mapped[bool]
    est_prompt_tokens: Mapped[int]
    max_tokens: Mapped[int]
    request_bytes: Mapped[int] = mapped_column(server_default=text("0"))
    stream: Mapped[bool] = mapped_column(server_default=text("false"))
    submitted_at: Mapped[datetime]
    deadline_at: Mapped[datetime | None]
    leased_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    prompt_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    queue_ms: Mapped[float | None]
    run_ms: Mapped[float | None]
    finish_reason: Mapped[str | None]
    error_code: Mapped[str | None]

    __table_args__ = (
        one_of("state", JobState),
        CheckConstraint("priority BETWEEN 0 AND 2", name="priority"),
        CheckConstraint("state <> 'leased' OR incarnation IS NOT NULL", name="leased_by_someone"),
        CheckConstraint(
            "(state IN ('queued', 'leased')) = (ended_at IS NULL)", name="ended_at_when_terminal"
        ),
        Index("ix_jobs_admit_seq", "admit_seq", unique=True),
        Index("ix_jobs_queued", "pool", "priority", "admit_seq", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_leased", "incarnation", postgresql_where=text("state = 'leased'")),
        Index(
            "ix_jobs_deadline",
            "pool",
            "deadline_at",
            postgresql_where=text("state = 'queued' AND deadline_at IS NOT NULL"),
        ),
        Index("ix_jobs_ended", "pool", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
        {"postgresql_with": HOT_TABLE},
    )


class JobInput(Table):
    """What a job asks for; written once.

    `request` is a `GenerationRequest` as its producer set it. No SQL names its fields: what is scheduled or
    announced by is copied into the job's row at admission. Plain JSON, not jsonb: what the producer wrote
    comes back number for number and key for key.
    """

    __tablename__ = "job_inputs"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    callback_url: Mapped[str | None]
    callback_host: Mapped[str | None]
    submission_id: Mapped[UUID]

    __table_args__ = (
        CheckConstraint("(request->'prompt' IS NULL) <> (request->'messages' IS NULL)", name="one_input"),
    )


class JobOutput(Table):
    """What came of a job, text or error message, and what its tokens were chosen by; written once."""

    __tablename__ = "job_outputs"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    output: Mapped[str | None]
    error_message: Mapped[str | None]
    sampling: Mapped[dict[str, float] | None] = mapped_column(JSON)


class JobKey(Table):
    """The idempotency keys taken: a key outlives its job, so that a late repeat is still known."""

    __tablename__ = "job_keys"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    payload_sha256: Mapped[str]
    """With the number of the rule it was made by (`lorayard/contract/ids.py`)."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    pool: Mapped[str | None]
    """None for keys of releases before 0014, which gave jobs without a key a row as well."""

    __table_args__ = (Index("ix_job_keys_age", "created_at"),)


class Attempt(Table):
    """One run of one job that ended in any way its worker or the leader knows of."""

    __tablename__ = "attempts"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    incarnation: Mapped[str]
    ended: Mapped[str]
    revision: Mapped[str | None]
    prompt_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    queue_ms: Mapped[float | None]
    run_ms: Mapped[float | None]
    device_ms: Mapped[float] = mapped_column(server_default=text("0"))
    error_code: Mapped[str | None]
    ended_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (one_of("ended", ATTEMPT_ENDS),)


class Cancellation(Table):
    """A wish to cancel; it may come before the job itself, so nothing refers to `jobs`."""

    __tablename__ = "cancellations"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IntakeReject(Table):
    """A stream entry that could not be admitted, kept with its bytes for a person to look at."""

    __tablename__ = "intake_rejects"

    pool: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(primary_key=True)
    entry_id: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[bytes]
    error: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_intake_rejects_age", "pool", "created_at"),)
