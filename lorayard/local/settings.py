"""Reads the environment once, at the edge: what the caller wants of the local stack."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from lorayard.local.cards import cards_for, check_workers, memory_share
from lorayard.local.config import StackConfig
from lorayard.local.environment import inherited_environment
from lorayard.process.environment import DeviceName

_WORKERS_ON_CPU = 2


class StackSettings(BaseSettings):
    """The local stack as the environment describes it; every field can also be given by name."""

    model_config = SettingsConfigDict(populate_by_name=True, env_ignore_empty=True, extra="ignore")

    state_dir: Path = Field(default=Path(".lorayard"), validation_alias="LORAYARD_STATE_DIR")
    # Without the prefix on purpose: LORAYARD_REDIS_URL may still name the stack of an earlier run.
    redis_url: str | None = Field(default=None, repr=False, validation_alias="REDIS_URL")
    database_url: str | None = Field(default=None, repr=False, validation_alias="DATABASE_URL")
    num_workers: int | None = Field(default=None, ge=0, le=64, validation_alias="LORAYARD_WORKERS")
    device: DeviceName = Field(default="cpu", validation_alias="LORAYARD_DEVICE")
    share_gpus: bool = Field(default=False, validation_alias="LORAYARD_SHARE_GPUS")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, validation_alias="LORAYARD_GPU_MEMORY_UTILIZATION"
    )
    flower_port: int | None = Field(default=None, ge=1, le=65_535, validation_alias="LORAYARD_FLOWER_PORT")
    flower_control: bool = Field(default=False, validation_alias="LORAYARD_FLOWER_CONTROL")
    flower_max_tasks: int = Field(default=10_000, ge=1, validation_alias="LORAYARD_FLOWER_MAX_TASKS")
    start_timeout_s: float = Field(default=120.0, gt=0, validation_alias="LORAYARD_START_TIMEOUT_S")
    drain_grace_s: float = Field(default=30.0, ge=0, validation_alias="LORAYARD_DRAIN_GRACE_S")

    model: Path | None = Field(default=None, validation_alias="LORAYARD_MODEL")
    served_model_name: str | None = Field(default=None, validation_alias="LORAYARD_SERVED_MODEL_NAME")
    adapter_store: Path | None = Field(default=None, validation_alias="LORAYARD_ADAPTER_STORE")
    secret_key: str | None = Field(default=None, repr=False, validation_alias="LORAYARD_SECRET_KEY")
    webhook_allow: str = Field(default="127.0.0.0/8", validation_alias="LORAYARD_WEBHOOK_ALLOW")
    auto_tenants: bool = Field(default=True, validation_alias="LORAYARD_AUTO_TENANTS")
    dtype: str | None = Field(default=None, validation_alias="LORAYARD_DTYPE")
    generation_config: str | None = Field(default=None, validation_alias="LORAYARD_GENERATION_CONFIG")
    max_num_seqs: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_NUM_SEQS")
    max_loras: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_LORAS")
    max_lora_rank: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_LORA_RANK")
    max_cpu_loras: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_CPU_LORAS")
    max_model_len: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_MODEL_LEN")

    def to_config(self) -> StackConfig:
        """Return the stack's configuration, with a worker for each card if nobody said how many.

        Raises CardsUnavailable if the device is "cuda" and the cards do not suffice.
        """
        environment = inherited_environment()
        cards = cards_for(self.device, environment)
        num_workers = len(cards) or _WORKERS_ON_CPU
        if self.num_workers is not None:
            num_workers = self.num_workers
        if cards:
            check_workers(cards, num_workers, shared=self.share_gpus)
        share = memory_share(cards, num_workers, self.gpu_memory_utilization)
        ours = {"num_workers": num_workers, "cards": cards, "gpu_memory_utilization": share}
        return StackConfig(**self.model_dump(exclude={"device"}) | ours, inherited_env=environment)
