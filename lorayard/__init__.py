"""What producers and receivers hold in hand: the client, its types and errors, and webhook verification.

Each is imported when it is first asked for: scheduler, workers, relay and Flower, which need a module or two
of this package, hold no client in memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorayard.client import (
        AsyncClient,
        AsyncJobHandle,
        Client,
        JobHandle,
        StreamEvent,
        as_completed,
    )
    from lorayard.contract.errors import (
        AdapterQuarantined,
        IdempotencyConflict,
        InvalidJob,
        InvalidSignature,
        JobFailed,
        LorayardError,
        QueueFull,
        QuotaExceeded,
        ResultExpired,
        ResultTimeout,
        Unavailable,
        UnknownAdapter,
        UnknownJob,
        UnknownPool,
    )
    from lorayard.contract.job import JobSpec
    from lorayard.contract.request import GenerationRequest, Message
    from lorayard.contract.result import JobError, JobProgress, JobResult
    from lorayard.contract.states import JobState
    from lorayard.contract.structured_outputs import StructuredOutputs

    __version__: str
__all__ = [
    "AdapterQuarantined",
    "AsyncClient",
    "AsyncJobHandle",
    "Client",
    "GenerationRequest",
    "IdempotencyConflict",
    "InvalidJob",
    "InvalidSignature",
    "JobError",
    "JobFailed",
    "JobHandle",
    "JobProgress",
    "JobResult",
    "JobSpec",
    "JobState",
    "LorayardError",
    "Message",
    "QueueFull",
    "QuotaExceeded",
    "ResultExpired",
    "ResultTimeout",
    "StreamEvent",
    "StructuredOutputs",
    "Unavailable",
    "UnknownAdapter",
    "UnknownJob",
    "UnknownPool",
    "as_completed",
]

_MODULE_OF = {
    "AdapterQuarantined": "lorayard.contract.errors",
    "AsyncClient": "lorayard.client",
    "AsyncJobHandle": "lorayard.client",
    "Client": "lorayard.client",
    "GenerationRequest": "lorayard.contract.request",
    "IdempotencyConflict": "lorayard.contract.errors",
    "InvalidJob": "lorayard.contract.errors",
    "InvalidSignature": "lorayard.contract.errors",
    "JobError": "lorayard.contract.result",
    "JobFailed": "lorayard.contract.errors",
    "JobHandle": "lorayard.client",
    "JobProgress": "lorayard.contract.result",
    "JobResult": "lorayard.contract.result",
    "JobSpec": "lorayard.contract.job",
    "JobState": "lorayard.contract.states",
    "LorayardError": "lorayard.contract.errors",
    "Message": "lorayard.contract.request",
    "QueueFull": "lorayard.contract.errors",
    "QuotaExceeded": "lorayard.contract.errors",
    "ResultExpired": "lorayard.contract.errors",
    "ResultTimeout": "lorayard.contract.errors",
    "StreamEvent": "lorayard.client",
    "StructuredOutputs": "lorayard.contract.structured_outputs",
    "Unavailable": "lorayard.contract.errors",
    "UnknownAdapter": "lorayard.contract.errors",
    "UnknownJob": "lorayard.contract.errors",
    "UnknownPool": "lorayard.contract.errors",
    "as_completed": "lorayard.client",
}

if not TYPE_CHECKING:  # mypy would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name == "__version__":
            value = import_module("lorayard.contract.version").RELEASE
        elif name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
