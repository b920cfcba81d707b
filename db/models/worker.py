"""Workers and leaders: who may act, and until when by the database's clock."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import DateTime, Integer, Uuid

from db.models.table import Table, one_of

WORKER_STATES = ("ready", "draining", "unhealthy", "gone", "lost")


class WorkerLease(Table):
    """The lease under which one start of a worker holds all its jobs, and the verdict that it is lost.

    A renewal touches this table alone, so that nothing which other tables wait for can end a lease. Who
    writes here and in `workers` and `jobs` does so in this order.
    """

    __tablename__ = "worker_leases"

    incarnation: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime]
    lost: Mapped[bool] = mapped_column(server_default=text("false"))

    # Renewed every two seconds and never indexed there: with room in the page each renewal is a HOT update.
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)


class Worker(Table):
    """One start of one worker process."""

    __tablename__ = "workers"

    incarnation: Mapped[str] = mapped_column(primary_key=True)
    pool: Mapped[str]
    hostname: Mapped[str]
    state: Mapped[str]
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    commit_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("-1"))
    """The last commit group; one that comes again has been written already."""
    running_jobs: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default=text("'{}'"))
    running_attempts: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'"))
    """With `running_jobs`, pair by pair: what was on the device at the last heartbeat."""
    step_jobs: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default=text("'{}'"))
    step_attempts: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'"))
    """With `step_jobs`, pair by pair: what the engine was computing when it died."""
    succeeded_jobs: Mapped[int] = mapped_column(server_default=text("0"))
    host: Mapped[str | None]
    """Where workers of one name follow each other; None for workers of earlier releases."""
    ended_by: Mapped[str | None]
    """How it ended, in its own last word."""
    max_num_seqs: Mapped[int]
    num_kv_blocks: Mapped[int]
    block_size: Mapped[int]
    max_model_len: Mapped[int]
    max_loras: Mapped[int]
    max_lora_rank: Mapped[int]
    device: Mapped[str | None]
    """This and what follows is None for workers of earlier releases."""
    device_name: Mapped[str | None]
    device_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    driver_version: Mapped[str | None]
    torch_version: Mapped[str | None]
    reason: Mapped[str | None]
    """Why it is unhealthy."""
    store: Mapped[str | None]
    """Where it reads adapters, host and path; None for workers of earlier releases."""
    start_s: Mapped[float | None]
    """From its process's begin until it took jobs."""

    # Updated by every heartbeat and commit, never in an indexed column: HOT updates, with room in the page.
    __table_args__ = (one_of("state", WORKER_STATES), {"postgresql_with": {"fillfactor": "50"}})


class WorkerHost(Table):
    """How the engines of one host have ended lately (`db.losses.HostRecord`)."""

    __tablename__ = "worker_hosts"

    pool: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(primary_key=True)
    died_at: Mapped[list[datetime]] = mapped_column(ARRAY(DateTime(timezone=True)))
    in_a_row: Mapped[int]
    has_ended: Mapped[bool]
    lone_job: Mapped[UUID | None]
    lone_deaths: Mapped[int] = mapped_column(server_default=text("0"))


class LedgerId(Table):
    """One row: the name by which Redis knows whose terms these are."""

    __tablename__ = "ledger_id"

    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())

    __table_args__ = (CheckConstraint("one", name="one_row"),)


class SchedulerTerm(Table):
    """Who leads a pool; every transaction of a leader checks its term here."""

    __tablename__ = "scheduler_terms"

    pool: Mapped[str] = mapped_column(primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str]
    expires_at: Mapped[datetime]

    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)
