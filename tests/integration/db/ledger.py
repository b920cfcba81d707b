"""A ledger under test: one pool, workers on demand, and every repository a call away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from db import Database
from db.records import Admitted, Delivery, EndedAttempt, FinishedJob, NewJob, WorkerLimits
from db.repositories.admission import AdmissionRepository
from db.repositories.finish import FinishRepository
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from db.repositories.terms import TermRepository
from db.repositories.webhooks import WebhookRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.ids import payload_sha256
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import BatchJob
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState

POOL = "pool-1"
RELAY = uuid4()
MODEL = "tiny"
LIMITS = WorkerLimits(
    max_num_seqs=8, num_kv_blocks=100, block_size=16, max_model_len=512, max_loras=4, max_lora_rank=16
)
T = TypeVar("T")


def new_job(job_id: UUID | None = None, **fields: Any) -> NewJob:
    """Make a job that has just been submitted; spec fields and NewJob fields both go by name."""
    own = {
        "revision": None,
        "reply_to": "client-1",
        "est_prompt_tokens": 3,
        "waited_ms": 0.0,
        "rejection": None,
    }
    ours = {name: fields.pop(name, value) for name, value in own.items()}
    spec = JobSpec(**({"prompt": "hello"} | fields))
    return NewJob(job_id or uuid4(), uuid4(), spec, payload_sha256(spec, MODEL), MODEL, **ours)


def ended(job: BatchJob, state: JobState = JobState.SUCCEEDED, **fields: Any) -> EndedAttempt:
    """Report the end of a leased job."""
    values: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 5, "queue_ms": 10.0, "run_ms": 20.0}
    return EndedAttempt(job.job_id, job.attempt, state, **(values | {"device_ms": 7.0} | fields))


class Ledger:
    """Repositories over one database, each call in a transaction of its own."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, pool_size=20)
        self.term = self.database.run(lambda c: TermRepository(c).take(POOL, "leader", 3600.0)) or 0
        self._seq = count()

    def run(self, repository: Callable[..., Any], method: str, *args: Any, **named: Any) -> Any:
        """Call one method of a repository in a transaction."""
        return self.database.run(lambda c: getattr(repository(c), method)(*args, **named))

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Look into the tables, past the repositories."""
        with self.database.transaction() as connection:
            found = connection.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def admit(self, *jobs: NewJob) -> list[Admitted]:
        """Admit jobs in one transaction."""
        return self.database.run(lambda c: AdmissionRepository(c).admit(POOL, jobs))

    def admitted(self, number: int = 1, **fields: Any) -> list[UUID]:
        """Admit some new jobs; returns their ids."""
        return [entry.job_id for entry in self.admit(*(new_job(**fields) for _ in range(number)))]

    def worker(self, incarnation: str = "w1", lease_s: float = 60.0, **facts: Any) -> str:
        """Register a worker."""
        host = f"host-{incarnation}"
        self.run(WorkerRepository, "register", incarnation, POOL, host, LIMITS, lease_s, **facts)
        return incarnation

    def expire_lease(self, incarnation: str) -> None:
        """Let a worker's lease run out, without waiting for it."""
        self.sql("UPDATE worker_leases SET expires_at = now() WHERE incarnation = :i", i=incarnation)

    def lease(self, incarnation: str, *job_ids: UUID) -> list[BatchJob]:
        """Lease jobs to a worker."""
        return self.database.run(
            lambda c: LeaseRepository(c).lease(POOL, incarnation, job_ids, term=self.term)
        )

    def leased(self, incarnation: str = "w1", **fields: Any) -> BatchJob:
        """Admit one job and lease it."""
        return self.lease(incarnation, *self.admitted(**fields))[0]

    def finish(
        self,
        incarnation: str,
        *reports: EndedAttempt,
        seq: int | None = None,
    ) -> list[FinishedJob]:
        """Write one commit group."""
        number = next(self._seq) if seq is None else seq
        return self.database.run(lambda c: FinishRepository(c).finish(incarnation, number, reports))

    def claim(
        self, limit: int = 10, relay: UUID = RELAY, *, tenants: Sequence[str] | None = None, **named: Any
    ) -> list[Delivery]:
        """Claim webhooks as a living relay does, by default of all tenants."""

        def claim(connection: Connection) -> list[Delivery]:
            webhooks = WebhookRepository(connection)
            webhooks.renew(relay, 3600.0)
            return webhooks.claim(relay, limit, tenants or webhooks.tenants().due, **named)

        return self.database.run(claim)

    def get(self, job_id: UUID) -> JobResult:
        """Read a job that is there."""
        found = self.database.run(lambda c: JobRepository(c).get(job_id))
        assert found is not None
        return found

    def state(self, job_id: UUID) -> JobState:
        """Read a job's state."""
        return self.get(job_id).state
