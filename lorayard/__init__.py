"""What producers and receivers hold in hand: the client, its types and errors, and webhook verification."""

from lorayard.client import Client, JobHandle, as_completed
from lorayard.contract.errors import LorayardError
from lorayard.contract.job import JobSpec, Message
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

__all__ = [
    "Client",
    "JobError",
    "JobHandle",
    "JobResult",
    "JobSpec",
    "JobState",
    "LorayardError",
    "Message",
    "as_completed",
]
