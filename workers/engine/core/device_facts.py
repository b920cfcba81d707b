"""What an engine computes on: asked once of torch and the driver, before anything is loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch

from workers.engine.core.device_failures import is_device_failure
from workers.engine.core.errors import ConfigError

_DRIVER_VERSION_FILE = Path("/sys/module/nvidia/version")
_NVML = "libnvidia-ml.so.1"
_NVML_VERSION_BYTES = 80


class DeviceFacts(NamedTuple):
    """Fields of `EngineInfo`; what only a card has is None on the CPU."""

    device: str  # "cpu" or "cuda:N"
    device_name: str | None
    device_memory_bytes: int | None
    driver_version: str | None  # None on a card too, if the driver does not tell
    torch_version: str


def device_facts(device: str) -> DeviceFacts:
    """Describe `device`: "cpu", "cuda" or "cuda:N".

    Raises ConfigError if torch cannot use it, with what torch says of it; a card that has failed raises what
    torch does.
    """
    # torch's own class of strings would have whoever unpickles it import torch.
    version = str(torch.__version__)
    if device == "cpu":
        return DeviceFacts(device, None, None, None, version)
    index = _usable_card(device)
    card = torch.cuda.get_device_properties(index)
    return DeviceFacts(f"cuda:{index}", card.name, card.total_memory, _driver_version(), version)


def _usable_card(device: str) -> int:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:  # AssertionError: a torch that was built without CUDA
        if is_device_failure(error):
            raise
        raise ConfigError(
            f"device is {device!r}, but torch {torch.__version__} cannot use a card: {error}; give it a "
            "card, a driver and a torch with CUDA that fit each other, or give device 'cpu'"
        ) from error
    _, _, number = device.partition(":")
    index, count = int(number) if number else torch.cuda.current_device(), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"device is {device!r}, but torch sees {count} card{'' if count == 1 else 's'}, counted from 0: "
            "give one of these, or make more visible (CUDA_VISIBLE_DEVICES)"
        )
    return index


def _driver_version() -> str | None:
    try:
        return _DRIVER_VERSION_FILE.read_text().strip()
    except OSError:  # a container may hide it
        return _version_of_nvml()


def _version_of_nvml() -> str | None:
    """Ask the driver's own library for management, which torch does not need."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    version = ctypes.create_string_buffer(_NVML_VERSION_BYTES)
    failed = nvml.nvmlSystemGetDriverVersion(version, _NVML_VERSION_BYTES)
    nvml.nvmlShutdown()
    return None if failed else version.value.decode()
