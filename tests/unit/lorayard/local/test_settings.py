"""The environment describes the stack, and a wrong value is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lorayard.local.settings import StackSettings


def test_without_any_variable_everything_is_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "DATABASE_URL", "LORAYARD_STATE_DIR", "LORAYARD_WORKERS"):
        monkeypatch.delenv(name, raising=False)

    config = StackSettings().to_config()

    assert (config.redis_url, config.database_url) == (None, None)
    assert config.state_dir == Path(".lorayard")
    assert config.num_workers == 2
    assert config.durable


def test_variables_name_servers_folders_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "REDIS_URL": "redis://elsewhere/0",
        "DATABASE_URL": "postgresql://elsewhere/jobs",
        "LORAYARD_MODEL": "models/base",
        "LORAYARD_SERVED_MODEL_NAME": "someone/base",
        "LORAYARD_MAX_LORAS": "8",
        "LORAYARD_AUTO_TENANTS": "false",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    config = StackSettings().to_config()

    assert config.redis_url == "redis://elsewhere/0"
    assert config.database_url == "postgresql://elsewhere/jobs"
    assert config.model == Path("models/base")
    assert config.served_model_name == "someone/base"
    assert config.max_loras == 8
    assert not config.auto_tenants
    assert config.inherited_env["LORAYARD_MAX_LORAS"] == "8"


def test_the_clients_variable_of_an_earlier_stack_names_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("LORAYARD_REDIS_URL", "redis://an-earlier-stack/0")

    assert StackSettings().redis_url is None


def test_fields_can_be_given_by_name_and_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAYARD_WORKERS", "5")

    assert StackSettings(num_workers=3).num_workers == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("LORAYARD_WORKERS", "-1"), ("LORAYARD_FLOWER_PORT", "70000"), ("LORAYARD_MAX_LORAS", "x")],
)
def test_an_absurd_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ValidationError, match=name):
        StackSettings()


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    settings = StackSettings(
        secret_key="hush", redis_url="redis://:hush@h/0", database_url="postgresql://u:hush@h/d"
    )

    assert "hush" not in repr(settings)
    assert "hush" not in repr(settings.to_config())
