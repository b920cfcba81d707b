"""Hands a pool in Redis from one ledger to another, on purpose."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple
from uuid import UUID

from redis import Redis

from lorayard.contract.keys import PoolKeys
from scheduler.leader_context import lua

STALE_AFTER_MS: Final = 5_000
"""A leader publishes twice a second: one that has been silent for so long has stopped."""

POLL_S: Final = 0.25


class Adoption(NamedTuple):
    """What was found: the ledger that had the pool, if one had, and whether its leader still publishes."""

    before: str | None
    is_led: bool


def adopt(redis: Redis, pool: str, ledger: UUID) -> Adoption:
    """Give a pool to a ledger; if a leader of another one publishes again within five seconds it stays.

    The jobs in its intake are admitted by the ledger's next leader. Raises redis-py's errors.
    """
    keys = PoolKeys(pool)
    script = redis.register_script(lua("adopt"))
    names = [keys.term, keys.ledger, keys.admission]
    arguments: list[Any] = [str(ledger), STALE_AFTER_MS]
    first: bytes | None = None
    while True:
        before, published = script(keys=names, args=arguments)
        if not published or (first is not None and published != first):
            return Adoption(before.decode() or None, is_led=bool(published))
        first = published
        time.sleep(POLL_S)
