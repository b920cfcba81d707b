"""Compile the variant of a kernel that a launch would run, for a GPU that need not be there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels import cards

ARCHITECTURES = (80, 90, 100, 120)
MAX_SHARED_BYTES = 99 << 10
"""Of one program: what the smallest of them, sm_120, allows."""
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_NARROW = re.compile(r"\b(?:ld|st)\.global\S*\.[bsu]16\b")
_INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)\s+(.*?);")
_REGISTER = re.compile(r"%[a-z]+\d+")
_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_SCALARS = {int: "i32", float: "fp32"}


class Compiled(NamedTuple):
    ptx: str
    cubin: bytes
    num_registers: int
    stack_bytes: int  # registers that spilled
    num_narrow: int  # global loads and stores of two bytes
    shared_bytes: int
    read_before_wait: frozenset[str] | None  # parameters; None: it waits for no kernel in front


class Launch(NamedTuple):
    """What a launcher gave its kernel."""

    args: tuple[Any, ...]
    options: dict[str, Any]


class Recorder:
    """Stands for a kernel in its module and keeps what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grids.append(grid)
        return lambda *args, **options: self.launches.append(Launch(args, options))


def launch_on(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have launchers choose for every device what they would for a card of this architecture."""
    monkeypatch.setattr(cards, "capability", lambda _device: arch // 10)


def compile_launch(kernel: JITFunction, launch: Launch, *, arch: int, tmp_path: Path) -> Compiled:
    """Compile for compute capability `arch` what Triton would compile for these arguments.

    A tensor's address and an integer count as multiples of 16 if they are, unless the kernel says
    `do_not_specialize` or `do_not_specialize_on_alignment`; an integer that is 1 is a constant.
    """
    source, options = _specialized(kernel, launch)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([_CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
    assert found, usage.stdout
    ptx = compiled.asm["ptx"]
    parameters = [name for name, kind in source.signature.items() if kind != "constexpr"]
    return Compiled(
        ptx,
        compiled.asm["cubin"],
        num_registers=int(found[1]),
        stack_bytes=int(found[2]),
        num_narrow=len(_NARROW.findall(ptx)),
        shared_bytes=compiled.metadata.shared,
        read_before_wait=_read_before_wait(ptx, parameters),
    )


def compile_for_amd(kernel: JITFunction, launch: Launch, *, arch: str) -> bytes:
    """Compile likewise for an AMD card, and return its program."""
    source, options = _specialized(kernel, launch)
    return bytes(triton.compile(source, target=GPUTarget("hip", arch, 64), options=options).asm["hsaco"])


def _specialized(kernel: JITFunction, launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """Return what a launch makes of a kernel, and the options of the compiler."""
    constants = {name: value for name, value in launch.options.items() if name in kernel.arg_names}
    options = {name: value for name, value in launch.options.items() if name not in constants}
    signature, attributes = dict.fromkeys(constants, "constexpr"), {}
    for parameter, value in zip(kernel.params, launch.args, strict=False):
        is_tensor = isinstance(value, Tensor)
        signature[parameter.name] = _POINTERS[value.dtype] if is_tensor else _SCALARS[type(value)]
        if parameter.do_not_specialize or isinstance(value, float):
            continue
        if is_tensor and parameter.do_not_specialize_on_alignment:
            continue
        if (value.data_ptr() if is_tensor else value) % 16 == 0:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        elif not is_tensor and value == 1:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
    ordered = {name: signature[name] for name in kernel.arg_names}
    return ASTSource(kernel, ordered, constexprs=constants, attrs=attributes), options


def _read_before_wait(ptx: str, parameters: Sequence[str]) -> frozenset[str] | None:
    """Return the pointers that addresses read before the wait for kernels in front were made of.

    AssertionError if something is written there, if not all programs come to the wait, or if some wait twice.
    """
    read: set[str] = set()
    made_of: dict[str, set[str]] = {}
    before, *rest = ptx.split("griddepcontrol.wait;")
    if not rest:
        return None
    assert len(rest) == 1, "some programs wait twice"
    for opcode, operands in filter(None, map(_instruction, before.splitlines())):
        assert opcode.split(".")[0] not in ("bra", "ret", "exit", "atom", "red", "call"), (opcode, operands)
        assert not opcode.startswith("st.global"), operands
        target, *sources = re.split(r",(?![^{]*\})", operands)
        used = {
            name for register in _REGISTER.findall(",".join(sources)) for name in made_of.get(register, ())
        }
        if opcode.startswith("ld.param"):
            used = {parameters[int(re.findall(r"_param_(\d+)", operands)[0])]}
        elif opcode.startswith("ld.global"):
            read |= used
        for register in _REGISTER.findall(target):
            made_of.setdefault(register, set()).update(used)
    return frozenset(name for name in read if name.endswith("_ptr"))


def _instruction(line: str) -> tuple[str, str] | None:
    found = _INSTRUCTION.match(line)
    return None if found is None else (found[1], found[2])
