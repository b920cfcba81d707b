"""The producer's side: submits jobs, hears how they end."""

from lorayard.client.async_client import AsyncClient
from lorayard.client.async_handle import AsyncJobHandle
from lorayard.client.client import Client
from lorayard.client.completion import as_completed
from lorayard.client.handle import JobHandle
from lorayard.client.stream import StreamEvent

__all__ = ["AsyncClient", "AsyncJobHandle", "Client", "JobHandle", "StreamEvent", "as_completed"]
