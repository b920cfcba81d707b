"""Where a producer finds Redis: the one place of the client that reads the environment."""

from __future__ import annotations

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """`LORAYARD_REDIS_URL`, or `REDIS_URL` if only that is set; `LORAYARD_CLIENT_TIMEOUT_S`."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    redis_url: str | None = Field(
        default=None, validation_alias=AliasChoices("LORAYARD_REDIS_URL", "REDIS_URL")
    )
    timeout_s: float = Field(default=5.0, gt=0.0, validation_alias="LORAYARD_CLIENT_TIMEOUT_S")
