"""How the ledger is configured: read once at the edge, from LORAYARD_* variables."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lorayard.contract.addresses import DatabasePassword, SecretServerUrl


class DatabaseSettings(DatabasePassword):
    """Where Postgres is and how long to wait for it."""

    database_url: SecretServerUrl = Field(description="postgresql://user:password@host:port/name")
    database_direct_url: SecretServerUrl | None = Field(
        default=None, description="past a pooler such as pgbouncer, for migrations; unset: the one above"
    )
    database_pool_size: int = Field(default=5, ge=1, le=200)
    statement_timeout_ms: int = Field(default=30_000, ge=100)


class SecretSettings(BaseSettings):
    """The keys that encrypt webhook secrets at rest; the first encrypts, all decrypt."""

    model_config = SettingsConfigDict(env_prefix="LORAYARD_", frozen=True, extra="ignore")

    secret_key: Annotated[tuple[SecretStr, ...], NoDecode] = ()

    @field_validator("secret_key", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def keys(self) -> list[str]:
        """The keys in clear, for `db.secrets.SecretBox`."""
        return [key.get_secret_value() for key in self.secret_key]
