"""Turns a job of a micro-batch into what the engine is asked, and names it there."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.structured_outputs import StructuredOutputs
from lorayard.server.adapter_store import revision_folder
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.serving.process import AddRequest
from workers.engine.structured_output import StructuredOutputsParams


def request_id(key: JobAttempt) -> str:
    """Name an attempt for the engine."""
    return f"{key.job_id}:{key.attempt}"


def parse_request_id(text: str) -> JobAttempt:
    """Read back what `request_id` wrote."""
    job_id, _, attempt = text.rpartition(":")
    return JobAttempt(UUID(job_id), int(attempt))


class AdapterIds:
    """Gives each revision the integer by which the engine's interface knows it, the same for life."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._next = itertools.count(1)

    def request(self, revision: str, name: str | None = None) -> LoRARequest:
        """Ask for one revision: its folder in the store, and the digest its files must have."""
        with self._lock:
            number = self._ids.setdefault(revision, 0) or next(self._next)
            self._ids[revision] = number
        folder = revision_folder(self._store, revision)
        return LoRARequest(name or revision, number, str(folder), revision=revision)


def add_request(job: BatchJob, adapters: AdapterIds, *, caches_by_tenant: bool = False) -> AddRequest:
    """Ask the engine for one job; raises the engine's InvalidParams for parameters it does not serve.

    With `caches_by_tenant` no job begins with what the engine has computed for another tenant's.
    """
    return AddRequest(
        request_id=request_id(JobAttempt(job.job_id, job.attempt)),
        prompt=job.prompt,
        messages=_messages(job),
        params=SamplingParams(
            max_tokens=job.max_tokens,
            temperature=job.temperature,
            top_p=job.top_p,
            top_k=job.top_k,
            seed=job.seed,
            stop=job.stop or None,
            structured_outputs=_form(job.structured_outputs),
            output_kind=RequestOutputKind.DELTA if job.stream else RequestOutputKind.FINAL_ONLY,
            **dict(job.sampling),
        ),
        lora=_lora(job, adapters),
        cache_salt=job.tenant if caches_by_tenant else None,
    )


def _form(form: StructuredOutputs | None) -> StructuredOutputsParams | None:
    return None if form is None else StructuredOutputsParams(**form.forms())


def _lora(job: BatchJob, adapters: AdapterIds) -> LoRARequest | None:
    if job.revision is None:
        return None
    return replace(adapters.request(job.revision, job.adapter), scale=job.adapter_scale)


def _messages(job: BatchJob) -> list[dict[str, str]] | None:
    if job.messages is None:
        return None
    return [{"role": message.role, "content": message.content} for message in job.messages]
