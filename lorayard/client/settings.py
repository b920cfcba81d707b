"""Where a producer finds Redis: the one place of the client that reads the environment."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field

from lorayard.contract.addresses import WITH_PASSWORD, RedisPassword


class ClientSettings(RedisPassword):
    """`LORAYARD_REDIS_URL`, or `REDIS_URL` if only that is set; `LORAYARD_CLIENT_TIMEOUT_S`."""

    redis_url: Annotated[str | None, WITH_PASSWORD] = Field(
        default=None, repr=False, validation_alias=AliasChoices("LORAYARD_REDIS_URL", "REDIS_URL")
    )
    timeout_s: float = Field(default=5.0, gt=0.0, validation_alias="LORAYARD_CLIENT_TIMEOUT_S")
