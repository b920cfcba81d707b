"""Gathers what there is to judge by: the soak's files and the rows of its jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import class_row, dict_row

Record = dict[str, Any]

TERMINAL = ("succeeded", "failed", "cancelled", "expired", "rejected", "dead")


@dataclass(frozen=True, slots=True)
class Source:
    """Where one soak has left its traces.

    `run` begins the names of its tenants; `mark` is what its processes have as SOAK_RUN in their environment.
    """

    folder: Path
    database_url: str
    redis_url: str
    run: str
    mark: str


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as the ledger has it."""

    job_id: UUID
    tenant: str
    adapter: str | None
    revision: str | None
    state: str
    attempt: int
    submitted_at: datetime
    ended_at: datetime | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None
    error_code: str | None
    has_callback: bool
    number: int | None
    variant: int | None
    output: str | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One ended attempt as the ledger has it."""

    job_id: UUID
    attempt: int
    incarnation: str
    ended: str
    revision: str | None
    queue_ms: float | None
    ended_at: datetime


class Submission(NamedTuple):
    """What names one payload of one planned job."""

    number: int
    variant: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of it; `intents` and `receipts` are in the order of their files."""

    intents: dict[Submission, Record]  # the first of each
    receipts: list[Record]
    told: list[Record]
    untold: list[Record]  # submissions whose producer has given up waiting
    streamed: list[Record]
    deliveries: list[Record]
    faults: list[Record]
    missed: int
    adapters: list[Record]
    expected: dict[str, dict[str, Record]]
    secrets: dict[str, str]
    jobs: list[JobRow]
    attempts: list[AttemptRow]
    workers: list[Record]

    @property
    def flushed_ids(self) -> set[str]:
        """The jobs that were in Redis alone when it was flushed."""
        return {job_id for fault in self.faults for job_id in fault.get("waiting", ())}


_JOBS = """
    SELECT j.job_id, j.tenant, j.adapter, j.revision, j.state, j.attempt, j.submitted_at, j.ended_at,
        j.prompt_tokens, j.completion_tokens, j.finish_reason, j.error_code, j.has_callback, o.output,
        (i.metadata->>'n')::integer AS number, (i.metadata->>'variant')::integer AS variant
    FROM jobs j LEFT JOIN job_inputs i USING (job_id) LEFT JOIN job_outputs o USING (job_id)
    WHERE j.tenant LIKE %(tenants)s ORDER BY j.admit_seq
"""

_ATTEMPTS = """
    SELECT a.job_id, a.attempt, a.incarnation, a.ended, a.revision, a.queue_ms, a.ended_at
    FROM attempts a JOIN jobs j USING (job_id) WHERE j.tenant LIKE %(tenants)s ORDER BY a.job_id, a.attempt
"""

_WORKERS = "SELECT incarnation, hostname, registered_at FROM workers ORDER BY registered_at"


def gather(source: Source, connection: psycopg.Connection[Any]) -> Evidence:
    """Read the files and the rows of one soak."""
    folder, tenants = source.folder, {"tenants": f"{source.run}-%"}
    produced = list(read(sorted(folder.glob("producer-*.jsonl"))))
    intents: dict[Submission, Record] = {}
    for record in _of(produced, "intent"):
        intents.setdefault(Submission(record["n"], record["variant"]), record)
    faults = list(read([folder / "faults.jsonl", folder / "hits.jsonl"]))
    with connection.cursor(row_factory=class_row(JobRow)) as cursor:
        jobs = cursor.execute(_JOBS, tenants).fetchall()
    with connection.cursor(row_factory=class_row(AttemptRow)) as cursor:
        attempts = cursor.execute(_ATTEMPTS, tenants).fetchall()
    with connection.cursor(row_factory=dict_row) as cursor:
        workers = cursor.execute(_WORKERS).fetchall()
    return Evidence(
        intents=intents,
        receipts=_of(produced, "receipt"),
        told=_of(produced, "told"),
        untold=_of(produced, "untold"),
        streamed=_of(produced, "streamed"),
        deliveries=list(read(sorted(folder.glob("receiver-*.jsonl")))),
        faults=sorted(_of(faults, "fault"), key=lambda fault: fault["at"]),
        missed=len(_of(faults, "missed")),
        adapters=list(read([folder / "adapters.jsonl"])),
        expected=json.loads((folder / "expected.json").read_text()),
        secrets=json.loads((folder / "secrets.json").read_text()),
        jobs=jobs,
        attempts=attempts,
        workers=workers,
    )


def read(paths: Iterable[Path]) -> Iterable[Record]:
    """Read the whole lines of files; a line that its writer was killed in is none."""
    for path in paths:
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _of(records: Iterable[Record], event: str) -> list[Record]:
    return [record for record in records if record["event"] == event]
