"""Which errors the scheduler rides out, and which it must answer for."""

from __future__ import annotations

import pytest
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import StatementError

from db.errors import DatabaseUnavailable, Deposed, UnknownWorker
from scheduler.outages import is_outage, is_passing

AWAY = [RedisConnectionError("refused"), BrokerError("refused"), DatabaseUnavailable("gone")]
OWN = [
    KeyError("job"),
    ValueError("NaN"),
    UnknownWorker("w"),
    StatementError("NUL", "INSERT", {}, ValueError()),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_redis_broker_and_ledger_away_are_outages(error: Exception) -> None:
    assert is_outage(error)
    assert is_passing(error)


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_what_an_item_caused_is_not_ridden_out(error: Exception) -> None:
    assert not is_outage(error)
    assert not is_passing(error)


def test_the_end_of_the_term_passes_but_is_no_outage() -> None:
    assert is_passing(Deposed("term 3"))
    assert not is_outage(Deposed("term 3"))
