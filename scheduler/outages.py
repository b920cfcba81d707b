"""Tells what the scheduler rides out: Redis, the broker or the ledger away or out of order for a while."""

from __future__ import annotations

from kombu.exceptions import BatchPublishError
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError

from db.errors import Deposed
from db.judge import explain, is_ledger_outage
from lorayard.transport.outages import is_redis_outage
from lorayard.transport.refusals import explained


def is_outage(error: BaseException) -> bool:
    """Whether an error says nothing of the item or the part in which it was met."""
    is_broker_outage = isinstance(error, (BrokerError, BatchPublishError))
    return is_broker_outage or is_redis_outage(error) or is_ledger_outage(error)


def is_passing(error: BaseException) -> bool:
    """Whether it is an outage, or the end of the term: the leader's affair, whatever it was about to do."""
    return is_outage(error) or isinstance(error, Deposed)


def told(error: BaseException) -> str:
    """Tell an error in one line for a log, with the remedy if Redis or the ledger's schema is to blame."""
    return explained(error) if isinstance(error, RedisError) else explain(error)
