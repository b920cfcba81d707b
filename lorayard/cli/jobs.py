"""`lorayard jobs`: what the ledger knows of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from lorayard.cli.ledger import open_ledger
from lorayard.cli.output import show_rows
from lorayard.contract.errors import ResultExpired, UnknownJob
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState

if TYPE_CHECKING:
    from db import Database

_COLUMNS = (
    "job_id", "state", "tenant", "adapter", "attempt", "prompt_tokens", "completion_tokens", "queue_ms",
    "run_ms", "error",
)  # fmt: skip


def jobs(
    job_id: Annotated[UUID | None, typer.Argument(help="One job, with its output.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the latest first.")] = 20,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List recent jobs, or show one."""
    with open_ledger() as database:
        if job_id is not None:
            typer.echo(find_job(database, job_id).model_dump_json(indent=None if as_json else 2))
            return
        found = recent_jobs(database, limit, state, tenant)
    if as_json:
        for job in found:
            typer.echo(job.model_dump_json())
        return
    rows = [{**job.model_dump(), "error": job.error and job.error.code} for job in found]
    show_rows(rows, _COLUMNS, as_json=False, none="no jobs")


def find_job(database: Database, job_id: UUID) -> JobResult:
    """Read one job; raises UnknownJob, or ResultExpired if only its key is remembered."""
    from db.repositories.jobs import JobRepository

    result = database.run(lambda connection: JobRepository(connection).get(job_id))
    if result is None and database.run(lambda connection: JobRepository(connection).left([job_id])):
        raise ResultExpired(f"job {job_id} has ended and left the ledger, which remembers its key alone")
    if result is None:
        raise UnknownJob(f"the ledger has no job {job_id}: check the id, or wait until it is admitted")
    return result


def recent_jobs(
    database: Database, limit: int, state: JobState | None = None, tenant: str | None = None
) -> list[JobResult]:
    """List jobs of all pools, the last admitted first."""
    from db.repositories.jobs import JobRepository

    return database.run(lambda connection: JobRepository(connection).recent(None, limit, state, tenant))
