"""Jobs going into a worker's hand and coming back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from db.records.jobs import FinishedJob, JobAttempt
from lorayard.contract.job import Message
from lorayard.contract.sampling import SamplingOptions
from lorayard.contract.structured_outputs import StructuredOutputs


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job as it goes to its worker, with everything needed to run it."""

    job_id: UUID
    attempt: int
    strikes: int
    tenant: str
    adapter: str | None
    revision: str | None
    adapter_scale: float
    prompt: str | None
    messages: tuple[Message, ...] | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    structured_outputs: StructuredOutputs | None
    sampling: SamplingOptions
    queue_ms: float
    first_token_within_s: float | None
    reply_to: str | None
    has_callback: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """What became of jobs given back: queued again, or ended because someone had cancelled them."""

    requeued: tuple[JobAttempt, ...] = ()
    finished: tuple[FinishedJob, ...] = ()


@dataclass(frozen=True, slots=True)
class LostJobs:
    """What became of a lost worker's jobs; `finished` holds the dead and those cancelled meanwhile.

    `lost` is False when the worker was not lost after all: it has renewed, or someone was faster.
    """

    lost: bool
    requeued: tuple[JobAttempt, ...] = ()
    finished: tuple[FinishedJob, ...] = ()
