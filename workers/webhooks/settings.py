"""Reads the relay's environment once."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from lorayard.process.environment import ServiceSettings

Network = IPv4Network | IPv6Network


class RelaySettings(ServiceSettings):
    """What the relay is told; the ledger and the keys of its secrets are configured in `db.settings`."""

    webhook_allow: Annotated[tuple[Network, ...], NoDecode] = Field(
        default=(), description="networks that may be called although they are not public"
    )
    webhook_concurrency: int = Field(default=64, ge=1, le=1000, description="deliveries in flight")
    webhook_per_host: int | None = Field(
        default=None, ge=1, le=1000, description="of these, to one host, beside the shares"
    )
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=60)

    @field_validator("webhook_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
        return value
