"""Tells a worker that its pool in Redis belongs to another ledger, whose jobs it can never be given."""

from __future__ import annotations

from uuid import UUID

import structlog
from redis import Redis

from db.judge import explain, is_ledger_outage
from db.repositories.terms import TermRepository
from db.server_check import look_database
from lorayard.contract.keys import PoolKeys
from lorayard.process.environment import refuse
from lorayard.transport.connections import for_probe
from lorayard.transport.outages import is_redis_outage

logger = structlog.get_logger(__name__)


def foreign_ledger(redis: Redis, pool: str, ours: UUID) -> str | None:
    """Say why a ledger's workers get no jobs of the pool; None if they do, or no leader has claimed it.

    Raises redis-py's errors.
    """
    found = redis.get(PoolKeys(pool).ledger)
    theirs = found.decode() if isinstance(found, bytes) else found
    if theirs in (None, str(ours)):
        return None
    return (
        f"pool {pool} in this Redis belongs to the ledger {theirs}, and this worker's is {ours}, so no job "
        "would reach it: correct LORAYARD_DATABASE_URL or LORAYARD_REDIS_URL, or hand the pool over with "
        "`lorayard ledger adopt`"
    )


def require_own_pool(redis_url: str, database_url: str, pool: str) -> None:
    """End the process with one clear line, before a model is loaded, if the pool is another ledger's.

    Servers that do not answer are ridden out: the worker looks again once it is registered.
    """
    database = look_database(database_url, "workers")
    try:
        ours = database.run(lambda connection: TermRepository(connection).ledger_id())
        with for_probe(redis_url) as redis:
            reason = foreign_ledger(redis, pool, ours)
    except Exception as error:
        if not is_ledger_outage(error) and not is_redis_outage(error):
            raise
        logger.warning("ledger.not_compared", error=explain(error))
        return
    finally:
        database.dispose()
    if reason is not None:
        refuse("workers", reason)
