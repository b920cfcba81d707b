"""The compiled kernels of the CPU, and the levels at which this processor has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kernels.cpu.sources import OURS, Recipe, library_path

Level = Literal["avx512_bf16", "avx2", "torch"]
LEVELS: tuple[Level, ...] = get_args(Level)  # best first
LEVEL_VARIABLE = "LORAYARD_CPU_LEVEL"

_forced: list[Level] = []
_elsewhere: dict[Level, Recipe] = {}


def level() -> Level:
    """Return the level at which kernels are resolved if none is asked for."""
    return _forced[-1] if _forced else best_level()


@cache
def best_level() -> Level:
    """Return the best level of this processor and this build, or the one that LORAYARD_CPU_LEVEL asks for.

    ValueError if the variable names a level that is not to be had here.
    """
    best = _processor_level()
    wanted, to_be_had = os.environ.get(LEVEL_VARIABLE) or best, LEVELS[LEVELS.index(best) :]
    chosen = next((one for one in to_be_had if one == wanted), None)
    if chosen is None:
        raise ValueError(
            f"{LEVEL_VARIABLE} is {wanted!r}, which this processor or this build has not; "
            f"unset it or give one of {to_be_had}"
        )
    return chosen


def _processor_level() -> Level:
    """Load the library if it was built for this torch; return its best level for this processor."""
    path = library_path(torch.__version__)
    return load(path, OURS) if path.exists() else "torch"


def load(path: Path, recipe: Recipe) -> Level:
    """Load a library; return its best level for this processor."""
    torch.ops.load_library(str(path))
    best = _operators(recipe).best_level()
    return next((one for one in LEVELS if one == best), "torch")


def _operators(recipe: Recipe) -> Any:
    return getattr(torch.ops, recipe.name)


def available_levels() -> tuple[Level, ...]:
    """Return every level that can be had here, best first."""
    best = LEVELS.index(best_level())
    return tuple(one for index, one in enumerate(LEVELS) if index >= best or one in _elsewhere)


def operator(name: str, wanted: Level) -> Callable[..., Any]:
    """Return a compiled operator at one level; ValueError if this processor or this build has it not."""
    _require(wanted)
    if wanted == "torch":
        raise ValueError(f"no operator {name!r} is compiled at level 'torch'; give one of {LEVELS[:-1]}")
    return getattr(getattr(_operators(_elsewhere.get(wanted, OURS)), name), wanted)


@contextmanager
def use_level(wanted: Level) -> Iterator[None]:
    """Resolve at a lower level for a while; ValueError if this processor or this build has it not."""
    _require(wanted)
    _forced.append(wanted)
    try:
        yield
    finally:
        _forced.pop()


@contextmanager
def use_library(recipe: Recipe, served: Level) -> Iterator[None]:
    """Have a level from another library for a while, once that is loaded: tests have one that is emulated."""
    _elsewhere[served] = recipe
    try:
        yield
    finally:
        del _elsewhere[served]


def _require(wanted: Level) -> None:
    if wanted not in available_levels():
        raise ValueError(f"level {wanted!r} is not to be had here; give one of {available_levels()}")
