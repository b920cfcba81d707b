"""Compile a kernel for a GPU that need not be there, and read what the assembler made of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiled(NamedTuple):
    ptx: str
    cubin: bytes
    num_registers: int
    stack_bytes: int  # registers that spilled


def compile_kernel(
    kernel: JITFunction,
    types: dict[str, str],
    constants: dict[str, int],
    *,
    arch: int,
    num_warps: int,
    tmp_path: Path,
) -> Compiled:
    """Compile for compute capability `arch` what is launched for a model whose widths are multiples of 16.

    Arguments that `types` does not name are i32. Pointers and `*_features` are told to be multiples of 16, as
    the launcher finds them.
    """
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_features"))
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "enable_fp_fusion": True},
    )
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [_CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(compiled.asm["ptx"], compiled.asm["cubin"], int(found[1]), int(found[2]))
