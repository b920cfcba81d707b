"""The leader's part, played by a test: admits, leases and sends jobs, reads what the worker tells."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import redis
from celery import Celery
from sqlalchemy import text

from db import Database
from db.records import JobAttempt, NewJob, WorkerRow
from db.repositories.admission import AdmissionRepository
from db.repositories.jobs import JobRepository
from db.repositories.leases import LeaseRepository
from db.repositories.terms import TermRepository
from lorayard.contract.ids import payload_sha256
from lorayard.contract.job import JobSpec
from lorayard.contract.keys import PoolKeys, reply_key, worker_queue
from lorayard.contract.messages import (
    ANSWERED_FIELD,
    BatchJob,
    Command,
    JobReply,
    MicroBatch,
    WorkerEvent,
)
from lorayard.contract.pool import pool_id
from lorayard.contract.request import GenerationRequest
from lorayard.contract.result import JobResult
from lorayard.contract.tasks import PING, RUN_MICRO_BATCH
from lorayard.server.celery_app import make_app
from tests.polling import eventually
from workers.engine.lora.files.digest import adapter_digest

TINY = Path(__file__).parents[3] / "examples" / "tiny"
ENDLESS = JobSpec(prompt="aaaa", max_tokens=19_000)
"""The base answers this by repeating itself until the limit: some tens of seconds."""


class ScriptedLeader:
    """The leader on a ledger, a Redis and an adapter store."""

    def __init__(self, redis_url: str, database_url: str, store: Path, model: Path) -> None:
        self.database = Database(database_url, name="scripted-leader")
        self.redis = redis.Redis.from_url(redis_url, protocol=2)
        self.redis_url = redis_url
        self.store = store
        self.pool = pool_id(model, "float32")
        self.keys = PoolKeys(self.pool)
        self._app: Celery = make_app(redis_url)
        self.term = self.database.run(lambda c: TermRepository(c).take(self.pool, "leader", 3600.0)) or 0
        self._revisions: dict[str, str] = {}
        self._events: defaultdict[str, list[WorkerEvent]] = defaultdict(list)
        self._answered: set[UUID] = set()
        self._next_event = "-"

    def close(self) -> None:
        """Let go of all connections."""
        self._app.close()
        self.redis.close()
        self.database.dispose()

    def revision(self, name: str) -> str:
        """Put one of the shipped adapters into the store; returns its digest."""
        if name not in self._revisions:
            self._revisions[name] = self.add_files(TINY / "adapters" / name)
        return self._revisions[name]

    def add_files(self, folder: Path) -> str:
        """Put a folder into the store under its digest."""
        digest = adapter_digest(str(folder))
        shutil.copytree(folder, self.store / digest.rpartition(":")[2], dirs_exist_ok=True)
        return digest

    def add_damaged(self, folder: Path) -> str:
        """Add an adapter with weights cut short, made in a new folder, under the digest of what is left."""
        shutil.copytree(TINY / "adapters" / "upper", folder)
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
        return self.add_files(folder)

    def admit(self, specs: Sequence[JobSpec], revision: str | None = None) -> list[UUID]:
        """Admit jobs, adapters pinned."""
        jobs = [
            NewJob(
                job_id=uuid4(),
                submission_id=uuid4(),
                spec=spec,
                payload_sha256=payload_sha256(spec, "tiny"),
                model="tiny",
                reply_to="client-1",
                revision=revision or (self.revision(spec.adapter) if spec.adapter else None),
                est_prompt_tokens=4,
                waited_ms=0.0,
            )
            for spec in specs
        ]
        self.database.run(lambda c: AdmissionRepository(c).admit(self.pool, jobs))
        return [job.job_id for job in jobs]

    def lease(self, incarnation: str, job_ids: Sequence[UUID]) -> list[BatchJob]:
        """Lease queued jobs to a worker, and send nothing."""
        return self.database.run(
            lambda c: LeaseRepository(c).lease(self.pool, incarnation, job_ids, term=self.term)
        )

    def send(
        self,
        to: str,
        jobs: Sequence[BatchJob],
        *,
        pool: str | None = None,
        named: str | None = None,
        **changes: Any,
    ) -> str:
        """Send one micro-batch to the queue of `to`, perhaps one that is `named` for another."""
        asked = {name: changes.pop(name) for name in [*changes] if name in GenerationRequest.model_fields}
        batch_jobs = [job.model_copy(update={**changes, "request": job.request | asked}) for job in jobs]
        batch = MicroBatch(
            batch_id=uuid4(),
            pool=pool or self.pool,
            incarnation=named or to,
            term=self.term,
            jobs=tuple(batch_jobs),
        )
        task_id = str(batch.batch_id)
        body = batch.model_dump(mode="json", exclude_unset=True)
        self._app.send_task(RUN_MICRO_BATCH, args=[body], task_id=task_id, queue=worker_queue(to))
        return task_id

    def send_broken(self, to: str, job: BatchJob) -> None:
        """Send one job in a message that is not JSON."""
        batch = MicroBatch(batch_id=uuid4(), pool=self.pool, incarnation=to, term=self.term, jobs=(job,))
        sent = self._app.amqp.as_task_v2(
            str(batch.batch_id), RUN_MICRO_BATCH, [batch.model_dump(mode="json", exclude_unset=True)]
        )
        body = json.dumps(sent.body).replace('"max_tokens"', "max_tokens")
        kinds = {"content_type": "application/json", "content_encoding": "utf-8"}
        with self._app.producer_or_acquire() as producer:
            producer.publish(
                body, routing_key=worker_queue(to), headers=sent.headers, **kinds, **sent.properties
            )

    def ping(self, to: str) -> UUID:
        """Send a ping through a worker's own queue; returns what it is to give back."""
        ping = uuid4()
        self._app.send_task(PING, args=[str(ping)], queue=worker_queue(to))
        return ping

    def dispatch(self, incarnation: str, specs: Sequence[JobSpec], **changes: Any) -> list[UUID]:
        """Admit, lease and send jobs as one micro-batch."""
        job_ids = self.admit(specs)
        leased = self.lease(incarnation, job_ids)
        assert len(leased) == len(specs), f"{incarnation} got {len(leased)} of {len(specs)} leases"
        self.send(incarnation, leased, **changes)
        return job_ids

    def command(self, incarnation: str, kind: str, *, term: int | None = None, **fields: Any) -> None:
        """Send one command."""
        command = Command(kind=kind, term=self.term if term is None else term, **fields)
        self.redis.xadd(self.keys.commands(incarnation), command.to_entry())

    def revoke(self, task_id: str, *, terminate: bool = False) -> None:
        """Revoke by Celery's control, as Flower does."""
        self._app.control.revoke(task_id, terminate=terminate)

    def shut_down(self, incarnation: str) -> None:
        """Shut a worker down by Celery's control, as Flower does."""
        (row,) = [row for row in self.ready_workers() if row.incarnation == incarnation]
        self._app.control.shutdown(destination=[row.hostname])

    def result(self, job_id: UUID) -> JobResult:
        """Read a job from the ledger."""
        found = self.database.run(lambda c: JobRepository(c).get(job_id))
        assert found is not None, f"job {job_id} is not in the ledger"
        return found

    def states(self, job_ids: Sequence[UUID]) -> list[str]:
        """List the states of jobs."""
        rows = self.sql("SELECT job_id, state FROM jobs WHERE job_id = ANY(:ids)", ids=list(job_ids))
        found = {row.job_id: row.state for row in rows}
        return [found[job_id] for job_id in job_ids]

    def ended(self, job_ids: Sequence[UUID], timeout_s: float = 30.0) -> list[JobResult]:
        """Wait until none of the jobs is queued or leased; returns their results."""
        eventually(
            lambda: not {"queued", "leased"} & set(self.states(job_ids)),
            timeout_s,
            f"the end of {len(job_ids)} jobs",
        )
        return [self.result(job_id) for job_id in job_ids]

    def ready_workers(self) -> list[WorkerRow]:
        """List the workers that can be given jobs."""
        return self.database.run(lambda c: LeaseRepository(c).ready_workers(self.pool))

    def attempts(self, job_id: UUID) -> list[Any]:
        """List what the ledger knows of a job's runs."""
        return self.sql("SELECT * FROM attempts WHERE job_id = :id ORDER BY attempt", id=job_id)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Look into the tables, past the repositories."""
        with self.database.transaction() as connection:
            found = connection.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def events(self, incarnation: str) -> list[WorkerEvent]:
        """Read all that one incarnation has told the leader."""
        self._read_events()
        return list(self._events[incarnation])

    def answered(self) -> set[UUID]:
        """Read which pings were answered."""
        self._read_events()
        return set(self._answered)

    def _read_events(self) -> None:
        """Read on in the stream, which holds what all workers of a whole run of tests have told."""
        entries: Any = self.redis.xrange(self.keys.worker_events, min=self._next_event)
        for entry_id, fields in entries:
            event = WorkerEvent.from_entry(fields)
            self._events[event.incarnation].append(event)
            if ANSWERED_FIELD in fields:
                self._answered.add(UUID(fields[ANSWERED_FIELD].decode()))
            self._next_event = f"({entry_id.decode()}"

    def told_ends(self, incarnation: str) -> dict[JobAttempt, str]:
        """Collect the ends that one incarnation has told the leader."""
        return {
            JobAttempt(end.job_id, end.attempt): end.state.value
            for event in self.events(incarnation)
            for end in event.ended
        }

    def held(self, incarnation: str, *, running: bool = False) -> set[UUID]:
        """Name the jobs of one incarnation's last heartbeat: all that it holds, or those on the device."""
        beats = [event.held for event in self.events(incarnation) if event.held is not None]
        return {held.job_id for held in beats[-1] if held.running or not running} if beats else set()

    def await_held(self, incarnation: str, *job_ids: UUID) -> None:
        """Wait for a heartbeat that names the jobs."""
        eventually(lambda: self.held(incarnation) >= set(job_ids), what="held jobs")

    def await_running(self, incarnation: str, *job_ids: UUID) -> None:
        """Wait for a heartbeat that calls the jobs running."""
        eventually(lambda: self.held(incarnation, running=True) >= set(job_ids), what="running jobs")

    def replies(self) -> list[JobReply]:
        """Read all that the client was told."""
        entries: Any = self.redis.xrange(reply_key("client-1"))
        return [JobReply.from_entry(fields) for _, fields in entries]
