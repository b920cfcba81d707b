"""Reads the environment once: what a scheduler process is told at its edge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lorayard.contract.addresses import DatabasePassword, RedisPassword, SecretServerUrl
from lorayard.contract.pool import GenerationConfigUse
from lorayard.process.environment import ServiceSettings
from lorayard.transport.redis_url import RedisUrl
from scheduler.policies import PolicyName
from scheduler.store_failures import FIRST_PAUSE_S


class SchedulerSettings(ServiceSettings, RedisPassword, DatabasePassword):
    """Everything a scheduler process is told; durations in seconds."""

    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    database_url: SecretServerUrl
    model: Path
    served_model_name: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    generation_config: GenerationConfigUse = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    auto_tenants: bool = Field(default=False, description="enter tenants at their first job")
    term_ttl_s: float = Field(default=5.0, gt=0, description="a silent leader is replaced after so long")
    worker_lease_s: float = Field(default=10.0, gt=0, description="what workers renew their leases for")
    policy: PolicyName = Field(default="fair", description="who goes first: fair, grouped or fifo")
    grouping_window: float = Field(
        default=8192.0,
        gt=0,
        description="tokens' cost one tenant may run ahead, so that adapters stay loaded",
    )
    max_workers: int | None = Field(
        default=None, ge=1, description="so many workers will there be at most; unset: no limit is known"
    )
    overcommit_s: float = Field(default=0.5, ge=0, description="work a worker has ahead of it")
    max_batch_jobs: int = Field(default=128, ge=1, description="jobs in one micro-batch")
    starvation_s: float = Field(
        default=10.0, gt=0, description="a normal job waits no longer for a slot; high half of it, low thrice"
    )
    max_backlog: int = Field(default=200_000, ge=1, description="queued jobs in the ledger")
    max_intake_entries: int = Field(default=100_000, ge=1, description="jobs waiting in Redis")
    max_intake_bytes: int = Field(default=512 * 1024 * 1024, ge=1)
    retention_days: float = Field(
        default=30.0, ge=0, allow_inf_nan=False, description="0 keeps everything that has ended forever"
    )
    key_days: float = Field(
        default=90.0,
        ge=0,
        allow_inf_nan=False,
        description="idempotency keys whose job has left are known for so long; 0 keeps them forever",
    )
    adapter_pause_s: float = Field(
        default=FIRST_PAUSE_S,
        gt=0,
        description="a store that could not give an adapter is not asked for it; doubled up to twentyfold",
    )
    adapter_store: Path | None = Field(default=None, description="unset: adapter files are never collected")
    statement_timeout_ms: int = Field(default=30_000, ge=100)
    max_flower_events_per_s: float = Field(default=6000.0, gt=0)
