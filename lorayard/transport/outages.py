"""Tells what is ridden out: Redis away, or out of order for a while."""

from __future__ import annotations

from redis.exceptions import RedisError


def is_redis_outage(error: BaseException) -> bool:
    """Whether Redis is to blame, and nothing of what was asked of it."""
    return isinstance(error, RedisError)
