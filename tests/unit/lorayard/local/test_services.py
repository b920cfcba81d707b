"""Lorayard's own processes get one environment, with cores shared out among the workers."""

from __future__ import annotations

from pathlib import Path

from lorayard.local.config import StackConfig
from lorayard.local.services import Addresses, client_environment, service_environment
from workers.engine.core.processors import num_processors

_ADDRESSES = Addresses("redis://r", "postgresql+psycopg://p", Path("/store"), "key")


def config(**options: object) -> StackConfig:
    return StackConfig(state_dir=Path("/state"), **{"inherited_env": {}, **options})  # type: ignore[arg-type]


def test_cores_are_shared_out_among_the_workers() -> None:
    cores = num_processors()

    assert service_environment(config(num_workers=1), _ADDRESSES)["OMP_NUM_THREADS"] == str(cores)
    assert service_environment(config(num_workers=4 * cores), _ADDRESSES)["OMP_NUM_THREADS"] == "1"
    assert service_environment(config(num_workers=0), _ADDRESSES)["OMP_NUM_THREADS"] == str(cores)


def test_a_thread_count_that_the_caller_set_is_kept() -> None:
    chosen = config(inherited_env={"OMP_NUM_THREADS": "7"})

    assert service_environment(chosen, _ADDRESSES)["OMP_NUM_THREADS"] == "7"


def test_the_stacks_addresses_win_over_inherited_ones() -> None:
    inherited = config(inherited_env={"LORAYARD_REDIS_URL": "redis://old", "HOME": "/home/me"})

    environment = service_environment(inherited, _ADDRESSES)

    assert environment["LORAYARD_REDIS_URL"] == "redis://r"
    assert environment["HOME"] == "/home/me"


def test_workers_and_the_command_are_told_one_name_of_the_base() -> None:
    named = config(served_model_name="someone/base")

    for environment in (service_environment(named, _ADDRESSES), client_environment(named, _ADDRESSES)):
        assert environment["LORAYARD_SERVED_MODEL_NAME"] == "someone/base"
    assert "LORAYARD_SERVED_MODEL_NAME" not in client_environment(config(), _ADDRESSES)


def test_workers_scheduler_and_the_command_agree_on_what_names_the_pool() -> None:
    none = config(generation_config="none")

    for environment in (service_environment(none, _ADDRESSES), client_environment(none, _ADDRESSES)):
        assert environment["LORAYARD_GENERATION_CONFIG"] == "none"


def test_extra_variables_have_the_last_word() -> None:
    environment = service_environment(config(max_loras=4, extra_env={"LORAYARD_MAX_LORAS": "9"}), _ADDRESSES)

    assert environment["LORAYARD_MAX_LORAS"] == "9"
