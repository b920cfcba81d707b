"""Webhooks on their way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from lorayard.contract.result import JobResult


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook to send; `claim` guards what is written after the attempt."""

    id: UUID
    job_id: UUID
    url: str
    host: str
    tenant: str
    event_type: str
    claim: int
    tries: int
    """This attempt included."""
    created_at: datetime
    ended_at: datetime
    result: JobResult


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A webhook as lists show it."""

    id: UUID
    job_id: UUID
    tenant: str
    url: str
    event_type: str
    state: Literal["pending", "delivered", "dead"]
    tries: int
    status: int | None
    error: str | None
    created_at: datetime
