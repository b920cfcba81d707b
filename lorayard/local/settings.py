"""Reads the environment once, at the edge: what the caller wants of the local stack."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from lorayard.local.config import StackConfig


class StackSettings(BaseSettings):
    """The local stack as the environment describes it; every field can also be given by name."""

    model_config = SettingsConfigDict(populate_by_name=True, env_ignore_empty=True, extra="ignore")

    state_dir: Path = Field(default=Path(".lorayard"), validation_alias="LORAYARD_STATE_DIR")
    # Without the prefix on purpose: LORAYARD_REDIS_URL may still name the stack of an earlier run.
    redis_url: str | None = Field(default=None, repr=False, validation_alias="REDIS_URL")
    database_url: str | None = Field(default=None, repr=False, validation_alias="DATABASE_URL")
    num_workers: int = Field(default=2, ge=0, le=64, validation_alias="LORAYARD_WORKERS")
    flower_port: int | None = Field(default=None, ge=1, le=65_535, validation_alias="LORAYARD_FLOWER_PORT")
    start_timeout_s: float = Field(default=120.0, gt=0, validation_alias="LORAYARD_START_TIMEOUT_S")
    drain_grace_s: float = Field(default=30.0, ge=0, validation_alias="LORAYARD_DRAIN_GRACE_S")

    model: Path | None = Field(default=None, validation_alias="LORAYARD_MODEL")
    served_model_name: str | None = Field(default=None, validation_alias="LORAYARD_SERVED_MODEL_NAME")
    adapter_store: Path | None = Field(default=None, validation_alias="LORAYARD_ADAPTER_STORE")
    secret_key: str | None = Field(default=None, repr=False, validation_alias="LORAYARD_SECRET_KEY")
    webhook_allow: str = Field(default="127.0.0.0/8", validation_alias="LORAYARD_WEBHOOK_ALLOW")
    auto_tenants: bool = Field(default=True, validation_alias="LORAYARD_AUTO_TENANTS")
    dtype: str | None = Field(default=None, validation_alias="LORAYARD_DTYPE")
    max_num_seqs: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_NUM_SEQS")
    max_loras: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_LORAS")
    max_lora_rank: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_LORA_RANK")
    max_cpu_loras: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_CPU_LORAS")
    max_model_len: int | None = Field(default=None, ge=1, validation_alias="LORAYARD_MAX_MODEL_LEN")

    def to_config(self) -> StackConfig:
        """Return the stack's configuration."""
        return StackConfig(**self.model_dump())
