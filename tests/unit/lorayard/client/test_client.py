"""How a client finds its Redis in the environment."""

from __future__ import annotations

import pytest

from lorayard import Client
from lorayard.contract.errors import InvalidJob, LorayardError, Unavailable


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAYARD_REDIS_URL", "REDIS_URL", "LORAYARD_CLIENT_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)


def test_an_environment_without_redis_is_told_with_the_remedy() -> None:
    with pytest.raises(Unavailable, match=r"LORAYARD_REDIS_URL is not set: export it.*lorayard up"):
        Client.from_env()


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"REDIS_URL": "redis://b:1/0"}, "redis://b:1/0"),
        ({"LORAYARD_REDIS_URL": "", "REDIS_URL": "redis://b:1/0"}, "redis://b:1/0"),
        ({"LORAYARD_REDIS_URL": "redis://a:1/0", "REDIS_URL": "redis://b:1/0"}, "redis://a:1/0"),
    ],
)
def test_our_own_variable_comes_first(
    variables: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with Client.from_env() as client:
        assert client._session.link.display_url == shown


def test_a_timeout_that_is_no_number_is_told_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAYARD_CLIENT_TIMEOUT_S", "soon")

    with pytest.raises(LorayardError, match="the environment is wrong: LORAYARD_CLIENT_TIMEOUT_S='soon'"):
        Client.from_env()


def test_what_is_no_job_id_is_refused_with_its_value() -> None:
    with (
        Client("redis://127.0.0.1:1/0") as client,
        pytest.raises(InvalidJob, match="'job-7' is not a valid job id"),
    ):
        client.job("job-7")


def test_closing_twice_is_once() -> None:
    client = Client("redis://127.0.0.1:1/0")
    client.close()
    client.close()
