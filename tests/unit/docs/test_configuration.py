"""docs/configuration.md names every variable that a process reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from db.settings import DatabaseSettings, SecretSettings
from kernels import dependent_launch
from kernels.cpu.library import LEVEL_VARIABLE
from lorayard.cli.settings import StoreSettings
from lorayard.client.settings import ClientSettings
from lorayard.local import StackSettings
from lorayard.process.environment import ServiceSettings
from lorayard.process.variables import KNOWN
from lorayard.server.flower import FlowerSettings
from scheduler.settings import SchedulerSettings
from workers.settings import WorkerSettings
from workers.webhooks.settings import RelaySettings

DOCUMENT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
EDGES: list[type[BaseSettings]] = [
    ClientSettings,
    DatabaseSettings,
    FlowerSettings,
    ServiceSettings,
    RelaySettings,
    SchedulerSettings,
    SecretSettings,
    StackSettings,
    StoreSettings,
    WorkerSettings,
]


def variables(settings: type[BaseSettings]) -> set[str]:
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices):
            names.update(str(choice) for choice in alias.choices)
        else:
            names.add(str(alias or f"LORAYARD_{name.upper()}"))
    return names


@pytest.mark.parametrize("settings", EDGES, ids=lambda settings: settings.__name__)
def test_every_variable_is_documented(settings: type[BaseSettings]) -> None:
    missing = {name for name in variables(settings) if f"`{name}`" not in DOCUMENT}

    assert not missing


def test_every_variable_is_known_so_that_others_are_told() -> None:
    read = {name for settings in EDGES for name in variables(settings) if name.startswith("LORAYARD_")}
    told = {"LORAYARD_MODEL_DIR", "LORAYARD_FLOWER_URL", LEVEL_VARIABLE, dependent_launch.VARIABLE}

    assert read | told == KNOWN
