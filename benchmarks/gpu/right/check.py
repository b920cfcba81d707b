"""One check, small enough for many of them to be shared out among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.errors import Verdict

Found = Iterator[tuple[str, Verdict]]
"""A case's name and what became of it."""


class Check(NamedTuple):
    """A kernel in one specialization, on one or more inputs."""

    kernel: str
    name: str
    run: Callable[[Device], Found]


def dtypes_of(device: Device) -> tuple[torch.dtype, ...]:
    """Return the dtypes to check; Triton's interpreter computes bfloat16 wrongly."""
    return (
        (torch.float32, torch.float16)
        if device.is_rehearsal
        else (torch.bfloat16, torch.float32, torch.float16)
    )


def short(dtype: torch.dtype) -> str:
    """Name a dtype."""
    return str(dtype).removeprefix("torch.")
