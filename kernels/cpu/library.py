"""Which kernels serve the CPU: the compiled ones at the best level this processor has, else plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.cpu.sources import library_path

Level = Literal["avx512_bf16", "avx2", "torch"]
LEVELS: tuple[Level, ...] = get_args(Level)  # best first

_forced: list[Level] = []


def level() -> Level:
    """Return the level in use."""
    return _forced[-1] if _forced else best_level()


def is_compiled() -> bool:
    """Whether the compiled kernels are in use."""
    return level() != "torch"


def serves(x: Tensor) -> bool:
    """Whether the compiled kernels take tensors like this one."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and is_compiled()


@cache
def best_level() -> Level:
    """Load the library if it was built for this torch; return its best level for this processor."""
    path = library_path(torch.__version__)
    if not path.exists():
        return "torch"
    torch.ops.load_library(str(path))
    best = torch.ops.lorayard.best_level()
    if best not in ("avx512_bf16", "avx2"):
        return "torch"
    torch.ops.lorayard.set_level(best)
    return "avx512_bf16" if best == "avx512_bf16" else "avx2"


def available_levels() -> tuple[Level, ...]:
    """Return every level that can be had here, best first."""
    return LEVELS[LEVELS.index(best_level()) :]


@contextmanager
def use_level(wanted: Level) -> Iterator[None]:
    """Use a lower level for a while, to compare; ValueError if this processor or this build has it not."""
    if wanted not in available_levels():
        raise ValueError(f"level {wanted!r} is not to be had here; give one of {available_levels()}")
    _forced.append(wanted)
    _tell_library()
    try:
        yield
    finally:
        _forced.pop()
        _tell_library()


def _tell_library() -> None:
    if is_compiled():
        torch.ops.lorayard.set_level(level())
