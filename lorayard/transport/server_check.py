"""Says why a Redis cannot keep accepted jobs, from what it tells of itself."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

MIN_VERSION: Final = (6, 2)

_CLUSTER: Final = (
    "it is part of a Redis cluster, whose keys lie on several servers: name a single server, "
    "or one whose cluster mode is off"
)
_SENTINEL: Final = "it is a Redis Sentinel, which keeps no data: name the server that it watches"


class UnusableRedis(Exception):
    """A Redis answers that must not be used; the message says why and what to change."""


class ServerFinding(NamedTuple):
    """What is wrong with a server: why it is refused, or else what its owner should know."""

    refusal: str | None = None
    warning: str | None = None


def look_at(redis: Redis) -> ServerFinding:
    """Ask a server for its version, mode and eviction policy; raises redis-py's errors.

    What a server does not tell, as some hosted ones do not, is taken to be right, with a warning.
    """
    try:
        info = redis.info()
    except ResponseError as error:
        if not isinstance(error, NoPermissionError) and "unknown command" not in str(error):
            raise
        return ServerFinding(
            warning=f"it does not say whether it may evict jobs ({error}): see that its maxmemory-policy is "
            "noeviction, or let Lorayard's user run INFO"
        )
    return judge(info)


def judge(info: Any) -> ServerFinding:
    """Judge the fields of INFO."""
    version = str(info.get("redis_version", ""))
    if (found := re.match(r"(\d+)\.(\d+)", version)) and (int(found[1]), int(found[2])) < MIN_VERSION:
        needed = ".".join(map(str, MIN_VERSION))
        return ServerFinding(f"it is Redis {version}: upgrade it to {needed} or newer")
    if info.get("redis_mode") == "sentinel":
        return ServerFinding(_SENTINEL)
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == 1:
        return ServerFinding(_CLUSTER)
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys-"):
        return ServerFinding(
            f"it may evict accepted jobs (maxmemory-policy {policy}): set maxmemory-policy noeviction"
        )
    if policy.startswith("volatile-"):
        return ServerFinding(
            warning=f"it may evict replies and tokens before they are read (maxmemory-policy {policy}), and "
            "clients then look them up: set maxmemory-policy noeviction"
        )
    return ServerFinding()
