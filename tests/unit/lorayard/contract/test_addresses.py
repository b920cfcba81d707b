"""A password given by itself gets into an address whatever it is made of, and no message shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery
from pydantic import ValidationError
from redis import Redis
from sqlalchemy import make_url

from db.settings import DatabaseSettings
from lorayard.cli.settings import LedgerSettings
from lorayard.client.settings import ClientSettings
from lorayard.contract.addresses import with_password
from lorayard.process.environment import settings_message
from lorayard.server.celery_app import make_app
from scheduler.settings import SchedulerSettings
from workers.settings import BrokerSettings

PASSWORDS = [
    "plain",
    "a#b",
    "a/b",
    "a@b",
    "a%41b",
    "a?b",
    "a:b",
    "a+b",
    "a b",
    "a&b=c",
    "'\"\\$x",
    "pä€",
    "[::1]",
]


def passwords_of_broker(app: Celery) -> str:
    with app.connection() as connection:
        return str(connection.password)


@pytest.mark.parametrize("password", PASSWORDS)
def test_every_library_reads_the_password_that_was_given(password: str) -> None:
    redis_url = with_password("redis://redis:6379/0", password)
    postgres = make_url(
        with_password("postgresql+psycopg://lorayard@one:5432/jobs?connect_timeout=1", password)
    )

    told = Redis.from_url(redis_url).connection_pool.connection_kwargs
    assert (told["password"], told["host"], told["port"]) == (password, "redis", 6379)
    assert passwords_of_broker(make_app(redis_url)) == password
    assert (postgres.password, postgres.username, postgres.database) == (password, "lorayard", "jobs")


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("redis://h", "redis://:p@h"),
        ("redis://user@h?protocol=3", "redis://user:p@h?protocol=3"),
        ("rediss://[::1]:1/0#a@b", "rediss://:p@[::1]:1/0#a@b"),
        ("unix:///run/redis.sock?db=1", "unix://:p@/run/redis.sock?db=1"),
    ],
)
def test_the_rest_of_an_address_stays_as_it_is(url: str, complete: str) -> None:
    assert with_password(url, "p") == complete


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for server in ("REDIS", "DATABASE"):
        (tmp_path / server).write_text(f"{server}/#\n")
        monkeypatch.setenv(f"LORAYARD_{server}_PASSWORD_FILE", str(tmp_path / server))
        monkeypatch.setenv(f"LORAYARD_{server}_PASSWORD", "")
    monkeypatch.setenv("LORAYARD_REDIS_URL", "redis://h/0")
    monkeypatch.setenv("LORAYARD_DATABASE_URL", "postgresql://u@h/d")
    return monkeypatch


def test_every_process_takes_passwords_by_themselves_from_variables_or_files(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    redis, postgres = "redis://:REDIS%2F%23@h/0", "postgresql://u:DATABASE%2F%23@h/d"

    scheduler = SchedulerSettings(model=tmp_path)
    assert (scheduler.redis_url, scheduler.database_url.get_secret_value()) == (redis, postgres)
    assert DatabaseSettings().database_url.get_secret_value() == postgres
    assert LedgerSettings().database_url.get_secret_value() == postgres
    assert BrokerSettings().redis_url == ClientSettings().redis_url == redis
    variables.setenv("LORAYARD_REDIS_PASSWORD_FILE", "")
    variables.setenv("LORAYARD_REDIS_PASSWORD", "by/itself")
    variables.delenv("LORAYARD_REDIS_URL")
    assert BrokerSettings().redis_url == "redis://:by%2Fitself@127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"LORAYARD_REDIS_PASSWORD": "hush"}, "given, and so is the file"),
        ({"LORAYARD_REDIS_URL": "redis://:hush@h/0"}, "it has a password, and another is given by itself"),
        ({"LORAYARD_REDIS_URL": "hush"}, "it is no URL"),
        ({"LORAYARD_REDIS_PASSWORD_FILE": "/no/such"}, "its file cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_showing_a_password(
    variables: pytest.MonkeyPatch, changed: dict[str, str], message: str
) -> None:
    for name, value in changed.items():
        variables.setenv(name, value)

    with pytest.raises(ValidationError) as caught:
        BrokerSettings()

    said = f"{settings_message(caught.value)} {caught.value}"
    assert message in said
    assert "hush" not in said


def test_settings_show_no_password_when_they_are_printed(variables: pytest.MonkeyPatch) -> None:
    assert "REDIS%2F%23" not in repr(BrokerSettings()) + repr(ClientSettings())
