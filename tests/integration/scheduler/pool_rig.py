"""A pool under test: schedulers of this process, its ledger, its streams, and a producer's end of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID, uuid4

from pydantic import SecretStr
from redis import Redis
from sqlalchemy import text

from db.database import Database
from db.records import RevisionRow
from db.repositories.adapters import AdapterRepository
from db.repositories.jobs import JobRepository
from db.repositories.terms import TermRepository
from lorayard.client.guard import IntakeEntry, SubmitGuard
from lorayard.contract.ids import job_id_for, payload_sha256
from lorayard.contract.job import JobSpec
from lorayard.contract.keys import PoolKeys, reply_key
from lorayard.contract.messages import PLACE_FIELD, ControlMessage, JobEnvelope, JobReply
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState
from lorayard.process.stop_request import StopRequest
from scheduler.leader_context import LeaderContext
from scheduler.process import Scheduler
from scheduler.settings import SchedulerSettings
from tests.polling import eventually

MODEL = Path(__file__).parents[3] / "examples" / "tiny" / "base"
CLIENT = "client-1"


class RunningScheduler:
    """One scheduler on a thread of the test's process."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.scheduler = Scheduler(settings)
        self._stopping = StopRequest()
        self._thread = threading.Thread(target=self._run, name="scheduler")
        self.served: bool | None = None
        """Whether it ended because it was told to, once it has."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        self.served = self.scheduler.run(self._stopping)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it as SIGTERM would."""
        self._stopping.set()
        self._thread.join(timeout=20.0)
        assert not self._thread.is_alive(), "the scheduler did not stop"


class PoolRig:
    """One pool with everything around its scheduler."""

    def __init__(self, redis_url: str, database_url: str, folder: Path) -> None:
        self.redis_url, self.database_url, self._folder = redis_url, database_url, folder
        self.database = Database(database_url, pool_size=10)
        self.redis = Redis.from_url(redis_url, protocol=2)
        self.info = Scheduler(self.settings()).info
        self.pool = self.info.pool
        self.keys = PoolKeys(self.pool)
        self._guard = SubmitGuard(self.redis)

    def settings(self, **changes: Any) -> SchedulerSettings:
        """Configure a scheduler of this pool."""
        values: dict[str, Any] = {
            "redis_url": self.redis_url,
            "database_url": SecretStr(self.database_url),
            "model": MODEL,
            "auto_tenants": True,
            "ready_file": self._folder / f"ready-{uuid4().hex}",
            "term_ttl_s": 2.0,
            "worker_lease_s": 1.0,
        }
        return SchedulerSettings(**(values | changes))

    def scheduler(self, **changes: Any) -> RunningScheduler:
        """Make a scheduler, to be entered."""
        return RunningScheduler(self.settings(**changes))

    def take_office(self) -> LeaderContext:
        """Begin a term of the test's, with no scheduler beside it."""
        term = self.database.run(lambda c: TermRepository(c).take(self.pool, "test", 3600.0))
        assert term is not None
        ledger = self.database.run(lambda c: TermRepository(c).ledger_id())
        return LeaderContext(self.pool, term, ledger, self.database, self.redis)

    def envelope(self, **fields: Any) -> JobEnvelope:
        """Make a submission; envelope fields and spec fields both go by name."""
        own = {"reply_to": CLIENT, "confirm_ledger": False}
        ours = {name: fields.pop(name, value) for name, value in own.items()}
        job_id = fields.pop("job_id", None)
        spec = JobSpec(**({"prompt": "hello"} | fields))
        return JobEnvelope(
            job_id=job_id or job_id_for(spec),
            submission_id=uuid4(),
            payload_sha256=payload_sha256(spec, self.info.model_name),
            spec=spec,
            **ours,
        )

    def send(self, *envelopes: JobEnvelope) -> None:
        """Append submissions as a client does."""
        entries = [
            IntakeEntry(e.spec.priority, e.model_dump_json().encode(), e.spec.tenant, e.spec.est_tokens)
            for e in envelopes
        ]
        if (refusal := self._guard.append(self.keys, entries).refusal) is not None:
            raise refusal

    def submit(self, number: int = 1, **fields: Any) -> list[UUID]:
        """Submit jobs; returns their ids."""
        envelopes = [self.envelope(**fields) for _ in range(number)]
        self.send(*envelopes)
        return [envelope.job_id for envelope in envelopes]

    def ask(self, kind: Any, job_id: UUID, *, place: bool = False) -> UUID:
        """Ask the leader, for the job's place as well if wanted; returns the request's id."""
        message = ControlMessage(kind=kind, job_id=job_id, reply_to=CLIENT, request_id=uuid4())
        self.redis.xadd(self.keys.control, message.to_entry() | ({PLACE_FIELD: b"1"} if place else {}))
        assert message.request_id is not None
        return message.request_id

    def replies(self) -> list[JobReply]:
        """Read all that the client has been told."""
        entries = cast("list[Any]", self.redis.xrange(reply_key(CLIENT)))
        return [JobReply.from_entry(fields) for _, fields in entries]

    def reply(self, **wanted: Any) -> JobReply:
        """Wait for a reply with some fields."""

        def find() -> JobReply | None:
            found = [r for r in self.replies() if all(getattr(r, n) == v for n, v in wanted.items())]
            return found[0] if found else None

        return eventually(find, what=f"a reply with {wanted}")

    def get(self, job_id: UUID) -> JobResult | None:
        """Read a job from the ledger."""
        return self.database.run(lambda c: JobRepository(c).get(job_id))

    def wait_for(self, state: JobState, *job_ids: UUID, timeout_s: float = 60.0) -> None:
        """Wait until jobs are in a state."""

        def reached() -> bool:
            rows = self.sql(
                "SELECT count(*) FROM jobs WHERE job_id = ANY(:ids) AND state = :s",
                ids=list(job_ids),
                s=state.value,
            )
            return int(rows[0][0]) == len(job_ids)

        eventually(reached, timeout_s, f"{len(job_ids)} jobs {state.value}; now {self.counts()}")

    def has_admitted(self, job_ids: Sequence[UUID]) -> bool:
        """Whether the ledger has all of some jobs."""
        rows = self.sql("SELECT count(*) FROM jobs WHERE job_id = ANY(:ids)", ids=list(job_ids))
        return int(rows[0][0]) == len(job_ids)

    def counts(self) -> dict[str, int]:
        """Count the jobs by state."""
        return {row.state: row.n for row in self.sql("SELECT state, count(*) AS n FROM jobs GROUP BY state")}

    def intake_is_empty(self) -> bool:
        """Whether nothing waits in the intake, by entries and by bytes."""
        entries = sum(int(self.redis.xlen(stream)) for stream in self.keys.all_jobs)
        return entries == 0 and int(cast("bytes", self.redis.get(self.keys.intake_bytes)) or 0) == 0

    def add_adapter(self, name: str, digest: str | None = None, rank: int = 4) -> str:
        """Enter an adapter into the catalogue; returns its revision."""
        revision = RevisionRow(digest or f"sha256:{name}", rank, ("q_proj",), 1000)
        self.database.run(lambda c: AdapterRepository(c).add_revision(self.pool, name, revision))
        return revision.digest

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Look into the tables, past the repositories."""
        with self.database.transaction() as connection:
            found = connection.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def close(self) -> None:
        """Let go of both servers."""
        self.redis.close()
        self.database.dispose()
