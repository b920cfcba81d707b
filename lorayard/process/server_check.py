"""Ends a process at its start if its Redis is none that Lorayard can use."""

from __future__ import annotations

import structlog
from redis.exceptions import RedisError

from lorayard.contract.wording import without_password
from lorayard.process.environment import refuse
from lorayard.transport.connections import for_probe
from lorayard.transport.refusals import explained
from lorayard.transport.server_check import look_at

logger = structlog.get_logger(__name__)


def require_usable_redis(program: str, url: str) -> None:
    """End the process with one clear line if the server is too old, a cluster's, or may evict jobs.

    One that does not answer is ridden out like any outage: whoever leads looks at it once it does.
    """
    try:
        with for_probe(url) as redis:
            refusal, warning = look_at(redis)
    except RedisError as error:
        logger.warning("redis.not_looked_at", error=explained(error))
        return
    if refusal is not None:
        refuse(program, f"the Redis at {without_password(url)} cannot be used: {refusal}")
    if warning is not None:
        logger.warning("redis.may_evict", warning=warning)
