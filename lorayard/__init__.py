"""What producers and receivers hold in hand: the client, its types and errors, and webhook verification."""

from lorayard.client import Client, JobHandle, StreamEvent, as_completed
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

__all__ = [
    "AdapterQuarantined",
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
