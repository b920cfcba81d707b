"""Judges jobs at the door: what each is pinned to and estimated at, or why it is rejected."""

from __future__ import annotations

import math
from collections.abc import Collection

from db.records import NewJob
from lorayard.contract.job import JobSpec
from lorayard.contract.messages import JobEnvelope
from lorayard.contract.pool import PoolInfo
from lorayard.contract.request import BYTES_PER_TOKEN
from lorayard.contract.result import JobError
from scheduler.catalogue import Catalogue


def judge(
    envelope: JobEnvelope,
    waited_ms: float,
    *,
    catalogue: Catalogue,
    limits: PoolInfo,
    tenants: Collection[str],
    refusal: JobError | None = None,
) -> NewJob:
    """Make the job that is offered to the ledger; one that cannot be served carries the reason.

    `refusal` is what was wrong with it already when it was read.
    """
    spec = envelope.spec
    revision, rejection = catalogue.resolve(spec.adapter)
    num_bytes = spec.prompt_bytes
    return NewJob(
        job_id=envelope.job_id,
        submission_id=envelope.submission_id,
        spec=spec,
        payload_sha256=envelope.payload_sha256,
        model=limits.model_name,
        reply_to=envelope.reply_to,
        revision=revision,
        est_prompt_tokens=estimate_tokens(num_bytes, limits.max_model_len),
        waited_ms=waited_ms,
        rejection=refusal or _tenant_error(spec, tenants) or rejection or _size_error(num_bytes, limits),
        is_whole=refusal is None,
    )


def estimate_tokens(num_bytes: int, max_model_len: int) -> int:
    """Estimate the tokens of a prompt, never so many that no worker would be tried."""
    return max(1, min(math.ceil(num_bytes / BYTES_PER_TOKEN), max_model_len - 1))


def _tenant_error(spec: JobSpec, tenants: Collection[str]) -> JobError | None:
    if spec.tenant in tenants:
        return None
    return JobError(
        code="unknown_tenant",
        message=f"there is no tenant {spec.tenant!r}: enter it, or set LORAYARD_AUTO_TENANTS=true",
    )


def _size_error(num_bytes: int, limits: PoolInfo) -> JobError | None:
    if num_bytes <= limits.max_prompt_bytes:
        return None
    return JobError(
        code="prompt_too_long",
        message=f"the prompt has {num_bytes} bytes, {limits.model_name} ({limits.max_model_len} tokens) "
        f"takes at most {limits.max_prompt_bytes}: shorten it",
    )
