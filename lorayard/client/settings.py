"""Where a producer finds Redis: the one place of the client that reads the environment."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import AliasChoices, Field, ValidationError

from lorayard.client.invalid_job import problems_of
from lorayard.contract.addresses import WITH_PASSWORD, RedisPassword
from lorayard.contract.errors import LorayardError, Unavailable


class ClientSettings(RedisPassword):
    """`LORAYARD_REDIS_URL`, or `REDIS_URL` if only that is set; `LORAYARD_CLIENT_TIMEOUT_S`."""

    redis_url: Annotated[str | None, WITH_PASSWORD] = Field(
        default=None, repr=False, validation_alias=AliasChoices("LORAYARD_REDIS_URL", "REDIS_URL")
    )
    timeout_s: float = Field(default=5.0, gt=0.0, validation_alias="LORAYARD_CLIENT_TIMEOUT_S")


class RedisAddress(NamedTuple):
    """The Redis of the environment, and how long an exchange with it may take."""

    url: str
    timeout_s: float


def client_settings() -> RedisAddress:
    """Read the environment; raises LorayardError if it is wrong, Unavailable if it names no Redis."""
    try:
        settings = ClientSettings()
    except ValidationError as error:
        raise LorayardError(f"the environment is wrong: {problems_of(error)}") from error
    if settings.redis_url is None:
        raise Unavailable(
            "LORAYARD_REDIS_URL is not set: export it, e.g. redis://127.0.0.1:6379/0; "
            "`lorayard up` prints the one it serves"
        )
    return RedisAddress(settings.redis_url, settings.timeout_s)
