"""Spares Triton's interpreter what it works out anew at every operation of every program."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from triton.language import core
from triton.runtime import interpreter

_SEQUENCES = (list, tuple, core.tuple)


def quicken() -> None:
    """Have shapes and dtypes worked out once in this process; results stay the same bits."""
    interpreter._get_np_dtype = _np_dtype
    core._unwrap_if_constexpr = _unwrap
    core.tensor.__init__ = _init_tensor
    core.block_type.__init__ = _init_block


@contextmanager
def unchecked_integers() -> Iterator[None]:
    """Add and multiply integers as a card does: checking each for overflow takes a quarter of the time."""
    builder = interpreter.interpreter_builder
    checked, builder.options = builder.options, replace(builder.options, sanitize_overflow=False)
    try:
        yield
    finally:
        builder.options = checked


_unwrap_any, _find_np_dtype = core._unwrap_if_constexpr, interpreter._get_np_dtype
_np_dtypes: dict[str, np.dtype[Any]] = {}
_blocks: dict[tuple[Any, ...], tuple[core.tuple, int, str]] = {}
_init_any_block = core.block_type.__init__


def _np_dtype(dtype: Any) -> np.dtype[Any]:
    name = dtype.scalar.name
    if name not in _np_dtypes:
        _np_dtypes[name] = _find_np_dtype(dtype)
    return _np_dtypes[name]


def _unwrap(value: Any) -> Any:
    if isinstance(value, core.constexpr):
        return value.value
    return _unwrap_any(value) if isinstance(value, _SEQUENCES) else value


@cache
def _shape(sizes: tuple[int, ...]) -> tuple[core.constexpr, core.tuple]:
    return core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])


def _init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - Triton's own name
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _shape((*type.shape,) if type.is_block() else ())


def _init_block(self: Any, element_ty: Any, shape: Sequence[Any]) -> None:
    key = (element_ty.name, *map(_unwrap, shape))
    if key not in _blocks:
        _init_any_block(self, element_ty, shape)
        _blocks[key] = self.shape, self.numel, self.name
    self.element_ty = element_ty
    self.shape, self.numel, self.name = _blocks[key]
