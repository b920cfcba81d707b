"""Which implementation of each op serves a device, dtype and level: `python -m kernels.registry` shows it.

An engine resolves its kernels once, when it is assembled; nothing is chosen at call time, and what is missing
is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kernels.activations.clamped_swiglu import ClampedGate
from kernels.activations.swiglu import Gate
from kernels.attention.paged_attention import PagedAttention, reads_blocks_of
from kernels.batch_invariant import BATCH_INVARIANT
from kernels.cpu import library
from kernels.experts.choose_experts import ChooseExperts
from kernels.experts.combine_experts import CombineExperts
from kernels.experts.expert_segments import ExpertSegments
from kernels.experts.grouped_linear import GroupedMultiply
from kernels.experts.sort_by_expert import SortByExpert
from kernels.linear.linear import LinearKernel
from kernels.linear.logits import HeadKernel
from kernels.linear.quantized_linear import QuantizedMultiply
from kernels.lora.add import LoRAAdd
from kernels.lora.embedding_lora_add import EmbeddingLoRAAdd
from kernels.norms.add_rms_norm import AddRMSNorm
from kernels.ops import OPS, Implementation, Level, Op
from kernels.sampling.draw import Draw

COLUMNS: tuple[tuple[str, Level], ...] = (
    ("cpu", "avx512_bf16"),
    ("cpu", "avx2"),
    ("cpu", "torch"),
    ("cuda", "triton"),
    ("meta", "meta"),
)
"""Device and level, as the table shows them."""


class MissingKernel(ValueError):
    """An op has no implementation for a device, dtype and level."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Every op, resolved for one device, dtype and level."""

    device: str
    dtype: torch.dtype
    level: Level
    add_rms_norm: AddRMSNorm
    swiglu: Gate
    geglu: Gate
    clamped_swiglu: ClampedGate
    linear: LinearKernel
    logits: HeadKernel
    quantized_linear: QuantizedMultiply | None  # None: weights cannot stay quantised
    lora_add: LoRAAdd
    lora_add_float32: LoRAAdd  # of the head, whose logits are float32
    embedding_lora_add: EmbeddingLoRAAdd
    choose_experts: ChooseExperts
    sort_by_expert: SortByExpert
    expert_segments: ExpertSegments
    grouped_linear: GroupedMultiply | None  # None: the weights of experts are not stacked
    combine_experts: CombineExperts
    paged_attention: PagedAttention | None  # None: gather the blocks for torch's attention
    draw: Draw  # from float32 logits, whatever the model's dtype
    batch_invariant: bool = False  # a row's bits depend on the row alone, in every op

    def attends_in_place(self, block_size: int) -> bool:
        """Whether attention reads a cache with such blocks where it lies."""
        return self.paged_attention is not None and reads_blocks_of(block_size)


def build(
    device: str, dtype: torch.dtype, level: Level | None = None, *, batch_invariant: bool = False
) -> Kernels:
    """Resolve every op; MissingKernel names the first that lacks an implementation.

    Without `level` it is the best: on a CPU what the processor and the build have, Triton on a GPU.
    `batch_invariant` takes only what gives a row the same bits in every batch, which a CPU has.
    """
    level = level or default_level(device)

    def found(op: str) -> Any:
        return resolve(op, device, dtype, level, batch_invariant=batch_invariant)

    return Kernels(
        device,
        dtype,
        level,
        add_rms_norm=found("add_rms_norm"),
        swiglu=found("swiglu"),
        geglu=found("geglu"),
        clamped_swiglu=found("clamped_swiglu"),
        linear=found("linear"),
        logits=found("logits"),
        quantized_linear=found("quantized_linear"),
        lora_add=found("lora_add"),
        lora_add_float32=resolve("lora_add", device, torch.float32, level, batch_invariant=batch_invariant),
        embedding_lora_add=found("embedding_lora_add"),
        choose_experts=found("choose_experts"),
        sort_by_expert=found("sort_by_expert"),
        expert_segments=found("expert_segments"),
        grouped_linear=found("grouped_linear"),
        combine_experts=found("combine_experts"),
        paged_attention=found("paged_attention"),
        draw=found("draw"),
        batch_invariant=batch_invariant,
    )


def resolve(op: str, device: str, dtype: torch.dtype, level: Level, *, batch_invariant: bool = False) -> Any:
    """Return one op's implementation, or None if the engine can do without; else MissingKernel."""
    found = by_name(op)
    implementation = find(found, device, dtype, level, batch_invariant=batch_invariant)
    if implementation is not None:
        # Whatever is not compiled takes no notice of the level.
        return implementation.make(level if level in ("avx512_bf16", "avx2") else "torch")
    if found.otherwise is not None:
        return None
    there = [
        f"{device}/{level}"
        for device, level in COLUMNS
        if find(found, device, dtype, level, batch_invariant=batch_invariant)
    ]
    kind = "batch-invariant implementation" if batch_invariant else "implementation"
    raise MissingKernel(
        f"no {kind} of {op} for device {device!r}, dtype {_short(dtype)}, level {level!r}; "
        f"this dtype has it on {', '.join(there) or 'nothing'}"
    )


def find(
    op: Op, device: str, dtype: torch.dtype, level: Level, *, batch_invariant: bool = False
) -> Implementation | None:
    """Return the implementation that serves, if there is one."""
    candidates = op.implementations
    if batch_invariant:
        compiled = (one for one in op.implementations if one.is_batch_invariant)
        candidates = (*compiled, *BATCH_INVARIANT[op.name])
    return next((one for one in candidates if one.serves(device, dtype, level)), None)


def by_name(name: str) -> Op:
    """Return an op; ValueError lists those there are."""
    for op in OPS:
        if op.name == name:
            return op
    raise ValueError(f"no op {name!r}; there are {', '.join(op.name for op in OPS)}")


def default_level(device: str) -> Level:
    """Return the best level of a kind of device."""
    if device == "cpu":
        return library.level()
    return "meta" if device == "meta" else "triton"


def table() -> Iterator[tuple[str, ...]]:
    """Yield the table's rows, the first one its head: op, dtype, and what serves in each column."""
    yield ("op", "dtype", *(f"{device}/{level}" for device, level in COLUMNS))
    for op in OPS:
        for dtype in (torch.float32, torch.bfloat16):
            served = [find(op, device, dtype, level) for device, level in COLUMNS]
            missing = "-" if op.otherwise is None else f"- ({op.otherwise})"
            yield (op.name, _short(dtype), *(missing if one is None else one.name for one in served))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show() -> None:
    rows = list(table())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"this machine: cpu/{default_level('cpu')}")  # noqa: T201
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())  # noqa: T201


if __name__ == "__main__":
    _show()
