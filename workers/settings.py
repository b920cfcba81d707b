"""Reads the environment once: what a worker process is told at its edge."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from lorayard.contract.addresses import DatabasePassword, RedisPassword, ServerUrl
from lorayard.contract.pool import GenerationConfigUse, pool_id
from lorayard.process.environment import DeviceName, ServiceSettings
from lorayard.transport.redis_url import RedisUrl


class BrokerSettings(RedisPassword):
    """What the Celery application alone needs."""

    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"


class WorkerSettings(ServiceSettings, BrokerSettings, DatabasePassword):
    """Everything a worker process is told; durations in seconds."""

    database_url: ServerUrl = "postgresql+psycopg://lorayard@127.0.0.1:5432/lorayard"
    model: Path
    served_model_name: str | None = None
    adapter_store: Path
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    generation_config: GenerationConfigUse = "auto"
    device: DeviceName = "cpu"
    kernels: Literal["triton"] | None = None
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="share of the card's memory")
    enforce_eager: bool = False
    batch_invariant: bool = False
    lora_pool_bytes: int | None = Field(default=None, ge=1, description="of the card's memory, for adapters")
    device_losses: tuple[float, ...] = Field(
        default=(),
        description="when the device failed, on the machine's clock; of an incarnation to the next",
    )
    worker_name: str = Field(default="worker", min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    max_num_seqs: int = Field(default=32, ge=1)
    max_loras: int = Field(default=4, ge=1)
    max_lora_rank: int = Field(default=64, ge=1)
    max_cpu_loras: int | None = Field(default=None, ge=1)
    max_cpu_lora_bytes: int | None = Field(default=None, ge=1)
    max_saved_module_bytes: int = Field(default=1 << 30, ge=1)
    max_queued_lora_loads: int = Field(default=256, ge=1)
    lora_load_timeout_s: float = Field(default=60.0, gt=0)
    max_model_len: int | None = Field(default=None, ge=1)
    num_kv_blocks: int | None = Field(default=None, ge=1)
    prefix_cache: Literal["shared", "tenant", "off"] = "shared"
    num_threads: int | None = Field(default=None, ge=1)
    engine_start_s: float = Field(default=600.0, gt=0)
    drain_grace_s: float = Field(default=60.0, ge=0, description="what running jobs get after SIGTERM")
    flush_s: float = Field(default=20.0, gt=0, description="what the last commits get after that")
    max_uncommitted: int = Field(default=2000, ge=1, description="results kept through a Postgres outage")
    worker_lease_s: float = Field(default=10.0, gt=0, description="renewed five times as often")
    statement_timeout_ms: int = Field(default=30_000, ge=100, description="of commits; less for renewals")
    suspect_after_s: float = Field(
        default=60.0, gt=0, description="results refused so long, for no known reason, are written one by one"
    )
    spill_dir: Path = Field(
        default=Path(tempfile.gettempdir()) / "lorayard-spill",
        description="where results go that the ledger refuses for no known reason",
    )

    @property
    def pool(self) -> str:
        """The pool whose jobs this worker may run."""
        return pool_id(self.model, self.dtype, generation_config=self.generation_config)
