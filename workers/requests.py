"""Turns a job of a micro-batch into what the engine is asked, and names it there."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob
from lorayard.contract.reading import read_request
from lorayard.contract.request import GenerationRequest
from lorayard.server.adapter_store import revision_folder
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.core.structured_outputs import StructuredOutputsParams
from workers.engine.serving.process import AddRequest

MAX_SHARED_PARAMS: Final = 256


def request_id(key: JobAttempt) -> str:
    """Name an attempt for the engine."""
    return f"{key.job_id}:{key.attempt}"


def parse_request_id(text: str) -> JobAttempt:
    """Read back what `request_id` wrote."""
    job_id, _, attempt = text.rpartition(":")
    return JobAttempt(UUID(job_id), int(attempt))


class AdapterIds:
    """Gives each revision the integer by which the engine's interface knows it, the same for life.

    What asks for a revision is one object, made once, so that one message to the engine has it once.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._requests: dict[tuple[str, str], LoRARequest] = {}
        self._next = itertools.count(1)

    def request(self, revision: str, name: str | None = None) -> LoRARequest:
        """Ask for one revision: its folder in the store, and the digest its files must have."""
        with self._lock:
            key = (revision, name or revision)
            return self._requests.get(key) or self._requests.setdefault(key, self._new_request(*key))

    def _new_request(self, revision: str, name: str) -> LoRARequest:
        number = self._ids.get(revision) or self._ids.setdefault(revision, next(self._next))
        folder = revision_folder(self._store, revision)
        # The base's name was compared when the revision was added, where --base-name can overrule it.
        return LoRARequest(name, number, str(folder), revision=revision, base_model_name="")


def add_request(job: BatchJob, adapters: AdapterIds, *, caches_by_tenant: bool = False) -> AddRequest:
    """Ask the engine for one job.

    Raises UnreadableRequest for what this release does not know, the engine's InvalidParams for parameters
    it does not serve. With `caches_by_tenant` no job begins with what was computed for another tenant's.
    """
    request = read_request(job)
    return AddRequest(
        request_id=request_id(JobAttempt(job.job_id, job.attempt)),
        prompt=request.prompt,
        messages=_messages(request),
        params=sampling_params(request),
        lora=_lora(job, request, adapters),
        cache_salt=job.tenant if caches_by_tenant else None,
    )


NOT_SAMPLING = frozenset({"prompt", "messages", "adapter_scale", "stream"})
"""What goes to the engine beside the parameters; every other field of a request is one, by its own name."""


def sampling_params(request: GenerationRequest) -> SamplingParams:
    """Hand a request's fields to the engine by name; the defaults are the request's, not the engine's.

    Requests that set the same get the same object, which was checked once, and which a message to the engine
    has once.
    """
    asked = sorted((name, getattr(request, name)) for name in request.model_fields_set - NOT_SAMPLING)
    try:
        return _shared_params(request.stream, *asked)
    except TypeError:  # a list or a dict among them: what could be changed is shared with nobody
        return _new_params(request)


@lru_cache(MAX_SHARED_PARAMS)
def _shared_params(stream: bool, *asked: tuple[str, Any]) -> SamplingParams:
    return _new_params(GenerationRequest.model_construct(prompt="", stream=stream, **dict(asked)))


def _new_params(request: GenerationRequest) -> SamplingParams:
    fields = {name: value for name, value in request if name not in NOT_SAMPLING}
    if request.structured_outputs is not None:
        fields["structured_outputs"] = StructuredOutputsParams(**request.structured_outputs.forms())
    fields["output_kind"] = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(**fields)


def _lora(job: BatchJob, request: GenerationRequest, adapters: AdapterIds) -> LoRARequest | None:
    if job.revision is None:
        return None
    lora = adapters.request(job.revision, job.adapter)
    return lora if request.adapter_scale == 1.0 else replace(lora, scale=request.adapter_scale)


def _messages(request: GenerationRequest) -> list[dict[str, str]] | None:
    if request.messages is None:
        return None
    return [{"role": message.role, "content": message.content} for message in request.messages]
