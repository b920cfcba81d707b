"""How jobs, clients and payloads are named; an id never carries an order."""

from __future__ import annotations

import hashlib
import os
import time
from uuid import UUID, uuid5

from lorayard.contract.job import JobSpec

JOB_NAMESPACE = UUID("5f6f1a52-6b0c-4d0e-9d0a-6c6f72617964")


def uuid7() -> UUID:
    """Make a UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then random bits."""
    value = int.from_bytes((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    return UUID(int=value & ~(0x3 << 62) | (0x2 << 62))


def job_id_for(spec: JobSpec) -> UUID:
    """Name a job: derived from tenant and idempotency key where there is one, else fresh."""
    if spec.idempotency_key is None:
        return uuid7()
    return uuid5(JOB_NAMESPACE, f"{spec.tenant}\n{spec.idempotency_key}")


def payload_sha256(spec: JobSpec) -> str:
    """Digest what a job asks for, so that a re-used idempotency key is told from a repeated submit."""
    return hashlib.sha256(spec.model_dump_json(exclude={"idempotency_key"}).encode()).hexdigest()
