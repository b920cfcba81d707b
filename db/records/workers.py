"""Workers, and what they are told to abort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from db.records.jobs import JobAttempt

WorkerState = Literal["ready", "draining", "unhealthy", "gone", "lost"]
WorkerEnd = Literal[
    "drained", "engine_died", "engine_hung", "device_lost", "consumer_failed", "broken", "vanished"
]
"""How an incarnation ended: as it said itself, or `vanished` without a word."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker can hold."""

    max_num_seqs: int
    num_kv_blocks: int
    block_size: int
    max_model_len: int
    max_loras: int
    max_lora_rank: int


@dataclass(frozen=True, slots=True)
class WorkerDevice:
    """What one worker computes on; all but `device` and torch's version is a card's."""

    device: str | None = None  # None: not told, by a worker of an earlier release
    device_name: str | None = None
    device_memory_bytes: int | None = None
    driver_version: str | None = None
    torch_version: str | None = None


class Canary(NamedTuple):
    """Why a host gets one job at a time, and how long it waits for the next."""

    reason: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One start of one worker."""

    incarnation: str
    pool: str
    hostname: str
    state: WorkerState
    limits: WorkerLimits
    lease_left_s: float
    device: WorkerDevice
    reason: str | None  # why it is unhealthy
    canary: Canary | None = None  # set while its host is in doubt
    store: str = ""  # where it reads adapters: host and path; of an earlier release's worker the host
    start_s: float | None = None  # from its process's begin until it took jobs


@dataclass(frozen=True, slots=True)
class Aborts:
    """What a worker should no longer run of the jobs that it holds."""

    cancelled: tuple[UUID, ...] = ()
    not_mine: tuple[JobAttempt, ...] = ()
    """Held pairs whose lease is over: abort them and say nothing."""
