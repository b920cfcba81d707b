"""What Triton's interpreter is spared gives what it gives unspared."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.language import core
from triton.runtime.interpreter import TensorHandle, interpreter_semantic

from benchmarks.gpu import interpreter

TYPES = [tl.float32, tl.bfloat16, tl.float16, tl.int1, tl.int8, tl.int32, tl.uint32, tl.int64]
SHAPES: list[list[int]] = [[], [4], [1], [2, 4]]
NUMBERS = [0, 1, -3, True, 0.0, 1.0, -2.5, float("inf"), 1e-40, 2**31, 2**40]


def tensor(dtype: Any, shape: list[int]) -> Any:
    values = (np.arange(int(np.prod(shape))) + 1).reshape(shape or 1)
    handle = TensorHandle(values.astype(interpreter._find_np_dtype(dtype)), dtype)
    return core.tensor(handle, core.block_type(dtype, shape) if shape else dtype)


def outcome(check: Any, lhs: Any, rhs: Any, **options: bool) -> Any:
    try:
        operands = check(interpreter_semantic, lhs, rhs, **options)
    except (TypeError, ValueError, AttributeError, RuntimeWarning) as error:  # refused, or beyond a dtype
        return type(error), str(error)
    return [
        (str(one.type), one.handle.data.dtype, one.handle.data.tobytes(), one.handle.dtype.name)
        for one in operands
    ]


@pytest.mark.parametrize("options", [{}, {"div_or_mod": True}, {"arithmetic_check": False}], ids=str)
def test_operands_become_the_same_tensors(options: dict[str, bool]) -> None:
    tensors = [tensor(dtype, shape) for dtype, shape in product(TYPES, SHAPES)]
    pairs = [
        *product(tensors, tensors),
        *product(tensors, NUMBERS),
        *product(NUMBERS, tensors),
    ]
    for lhs, rhs in pairs * 2:  # the second time with constants that are kept
        expected = outcome(interpreter._check_operands, lhs, rhs, **options)
        assert outcome(interpreter._operands, lhs, rhs, **options) == expected, (lhs, rhs)


def test_a_constant_that_is_kept_cannot_be_written_to() -> None:
    _, constant = interpreter._operands(interpreter_semantic, tensor(tl.float32, [4]), 7.0)

    with pytest.raises(ValueError, match="read-only"):
        constant.handle.data[0] = 1.0
