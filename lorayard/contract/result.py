"""What comes back: the typed outcome of a job."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from lorayard.contract.states import JobState


class JobError(BaseModel):
    """Why a job did not succeed: a stable code for programs, a message for people."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class JobProgress(NamedTuple):
    """How far a job has come; what cannot be foreseen is None."""

    state: JobState
    queue_position: int | None = None
    """Jobs foreseen to be given to workers before it; None once it was given to one, and while paused."""
    eta_s: float | None = None
    """Seconds that are foreseen until its end."""


class JobResult(BaseModel):
    """A job's state with all that is known of its outcome.

    `queue_ms` runs from submission to the start of the last attempt, `run_ms` from there to the end.
    `output` is None until the job has succeeded, and if a reply was too large to carry it.
    """

    model_config = ConfigDict(frozen=True)

    job_id: UUID
    state: JobState
    tenant: str = "default"
    adapter: str | None = None
    revision: str | None = Field(default=None, description="content digest of the adapter that answered")
    output: str | None = None
    finish_reason: str | None = None
    sampling: dict[str, int | float] | None = Field(
        default=None, description="the sampling parameters that held; None if no engine took the job"
    )
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempt: int = 0
    worker: str | None = None
    queue_ms: float | None = None
    run_ms: float | None = None
    error: JobError | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    warnings: tuple[str, ...] = Field(
        default=(), description="what is uncertain about the adapter, such as which base it was trained on"
    )
