"""Which errors the scheduler rides out, and which it must answer for."""

from __future__ import annotations

import pytest
from kombu.exceptions import BatchPublishError
from kombu.exceptions import OperationalError as BrokerError
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import StatementError

from db.errors import DatabaseUnavailable, Deposed, UnknownWorker
from lorayard.server.celery_app import make_app
from lorayard.transport.refusals import is_out_of_memory
from scheduler.outages import is_outage, is_passing, told

AWAY = [
    RedisConnectionError("refused"),
    BrokerError("refused"),
    BatchPublishError("uncertain"),
    DatabaseUnavailable("gone"),
]
REFUSED = [
    "READONLY You can't write against a read only replica.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOPERM this user has no permissions to run the 'brpop' command",
    "NOAUTH Authentication required.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOREPLICAS Not enough good replicas to write.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "ERR Error running script (call to f_ab): @user_script:3: -OOM command not allowed",
    "ERR max number of clients reached",
]
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


@pytest.mark.parametrize("said", REFUSED, ids=lambda said: said.partition(" ")[0])
def test_what_redis_refuses_for_a_while_ends_neither_a_loop_nor_celerys_consumer(said: str) -> None:
    refused = BaseParser.parse_error(said)
    published, batch = BrokerError("not published"), BatchPublishError("delivery is uncertain")
    published.__cause__ = batch.__cause__ = refused
    app = make_app("redis://h:1/0")
    with app.connection_for_read() as connection:
        recoverable = connection.connection_errors
        if app.conf.broker_channel_error_retry:
            recoverable += connection.channel_errors

    assert is_passing(refused)
    assert isinstance(refused, recoverable)
    assert "; " in told(refused)  # what the server said, and what helps
    assert [is_out_of_memory(error) for error in (refused, published, batch)] == ["OOM" in said] * 3
    app.close()


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_what_an_item_caused_is_not_ridden_out(error: Exception) -> None:
    assert not is_outage(error)
    assert not is_passing(error)


def test_the_end_of_the_term_passes_but_is_no_outage() -> None:
    assert is_passing(Deposed("term 3"))
    assert not is_outage(Deposed("term 3"))
