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
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_SEQUENCES = (list, tuple, core.tuple)
_PLAIN = {"fp32", "int32", "int64", "int1"}
"""Types that are computed as they are if both operands have the same one, a division's too."""
_NUMBERS = {"fp32": (int, float), "int32": (int,), "int64": (int,)}
"""Numbers that take the type of the other operand, given that int32 holds them or that they are floats."""


def quicken() -> None:
    """Have shapes, dtypes and constants worked out once in this process; results stay the same bits.

    The language stays patched after a kernel's first launch: in this process it is the interpreter's alone.
    """
    interpreter._get_np_dtype = _np_dtype
    interpreter._patch_lang = _patch_once
    interpreter._patch_attr = _patch_attr
    TritonSemantic.binary_op_type_checking_impl = _operands
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


_patch, _check_operands = interpreter._patch_lang, TritonSemantic.binary_op_type_checking_impl
_builtin_code = core.builtin(lambda: None).__code__
_patched: set[int] = set()
_constants: dict[tuple[Any, ...], Any] = {}
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


class _Kept:
    """The patches of a launch, which it does not take back: making them anew took a tenth of the time."""

    def restore(self) -> None:
        return


def _patch_once(fn: Any) -> _Kept:
    if id(fn.__globals__) not in _patched:
        _patch(fn)
        _patched.add(id(fn.__globals__))
    return _Kept()


def _patch_attr(obj: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
    """Hand a function of the language its semantic, which then need not be looked for at each call."""
    inner = member.__wrapped__ if getattr(member, "__code__", None) is _builtin_code else member

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = interpreter.interpreter_semantic
        return inner(*args, **kwargs)

    scope.set_attr(obj, name, call)


def _operands(
    self: Any,
    lhs: Any,
    rhs: Any,
    allow_lhs_ptr: bool = False,
    allow_rhs_ptr: bool = False,
    arithmetic_check: bool = True,
    div_or_mod: bool = False,
) -> tuple[Any, Any]:
    """Return the operands as tensors of one type and shape, at once where there is nothing to convert."""
    if arithmetic_check:
        if type(lhs) is core.tensor:
            if type(rhs) is not core.tensor:
                if _takes_type(rhs, lhs.dtype.name):
                    return lhs, _constant(self, rhs, lhs)
            elif lhs.dtype.name == rhs.dtype.name in _PLAIN and lhs.shape is rhs.shape:
                return lhs, rhs
        elif type(rhs) is core.tensor and _takes_type(lhs, rhs.dtype.name):
            return _constant(self, lhs, rhs), rhs
    rest = allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod
    operands: tuple[Any, Any] = _check_operands(self, lhs, rhs, *rest)
    return operands


def _takes_type(number: Any, dtype: str) -> bool:
    if type(number) not in _NUMBERS.get(dtype, ()):
        return False
    return type(number) is float or -(2**31) <= number < 2**31


def _constant(semantic: Any, number: float, like: Any) -> Any:
    key = (number, like.dtype.name, id(like.shape))  # shapes live as long as the process
    if key not in _constants:
        scalar = semantic.scalar_constant(number, like.dtype)
        _, constant = semantic.broadcast_impl_value(like, scalar)
        constant.handle.data.setflags(write=False)
        _constants[key] = constant
    return _constants[key]
