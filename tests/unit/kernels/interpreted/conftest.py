"""Kernels under Triton's interpreter: collected only where TRITON_INTERPRET=1 was set from the start."""

from __future__ import annotations

import os
from typing import Any

if os.environ.get("TRITON_INTERPRET") != "1":
    # `test_interpreter.py`, one folder up, runs this folder in a process of its own.
    collect_ignore_glob = ["test_*.py"]
else:
    import numpy as np
    from triton.runtime import interpreter

    from benchmarks.gpu.interpreter import quicken

    quicken()
    _create_dot = interpreter.InterpreterBuilder.create_dot

    def _create_widened_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        """Widen both operands: the interpreter keeps bfloat16 as integers, and would multiply those."""
        return _create_dot(self, _widened(a), _widened(b), *rest)

    def _widened(operand: Any) -> Any:
        if operand.data.dtype != np.uint16:
            return operand
        wide = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, interpreter.tl.float32)

    _convert_float = interpreter._convert_float

    def _convert_rounded(value: Any, given: Any, wanted: Any, rounding_mode: Any) -> Any:
        """Round float32 to the nearest bfloat16 and to even, as devices do: the interpreter cuts bits off."""
        if (given, wanted) != (interpreter.tl.float32, interpreter.tl.bfloat16):
            return _convert_float(value, given, wanted, rounding_mode)
        bits = np.ascontiguousarray(value).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(value), 0x7FC0, rounded).astype(np.uint16)

    interpreter.InterpreterBuilder.create_dot = _create_widened_dot
    interpreter._convert_float = _convert_rounded
