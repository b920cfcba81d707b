"""Which implementation of each op serves a device, dtype and level: `python -m kernels.registry` shows it.

An engine resolves its kernels once, when it is assembled; nothing is chosen at call time, and what is missing
is an error. A new kernel is its op's file, a line in `OPS`, its test and its benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import torch

from kernels.activations.geglu import geglu_compiled, geglu_reference
from kernels.activations.swiglu import Gate, swiglu_compiled, swiglu_reference
from kernels.attention.paged_attention import (
    PagedAttention,
    paged_attention_compiled,
    paged_attention_meta,
    paged_attention_reference,
    reads_blocks_of,
)
from kernels.cpu import library
from kernels.experts.choose_experts import ChooseExperts, choose_experts_reference
from kernels.experts.combine_experts import CombineExperts, combine_experts_reference
from kernels.experts.expert_rows import segments_on_host, sort_on_host
from kernels.experts.expert_segments import (
    ExpertSegments,
    expert_segments_meta,
    expert_segments_reference,
)
from kernels.experts.grouped_linear import GroupedMultiply, grouped_linear_meta, grouped_linear_reference
from kernels.experts.sort_by_expert import SortByExpert, sort_by_expert_meta, sort_by_expert_reference
from kernels.linear.linear import PLAIN, LinearKernel, bfloat16_on_cpu, linear_reference
from kernels.linear.logits import (
    PLAIN_HEAD,
    HeadKernel,
    logits_by_cublas,
    logits_compiled,
    logits_reference,
)
from kernels.linear.quantized_linear import (
    QuantizedMultiply,
    quantized_linear_compiled,
    quantized_linear_meta,
    quantized_linear_reference,
)
from kernels.lora.add import LoRAAdd, lora_add_meta
from kernels.lora.cpu import lora_add_compiled
from kernels.lora.embedding_lora_add import (
    EmbeddingLoRAAdd,
    embedding_lora_add_meta,
    embedding_lora_add_reference,
)
from kernels.lora.reference import lora_add_reference
from kernels.norms.add_rms_norm import AddRMSNorm, add_rms_norm_compiled, add_rms_norm_reference
from kernels.sampling.draw import Draw, draw_meta, draw_reference
from kernels.sampling.torch_draw import draw_torch

Level = Literal["avx512_bf16", "avx2", "torch", "triton", "meta"]
LEVELS: tuple[Level, ...] = get_args(Level)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
class Implementation:
    """One way to compute an op, and where it can be had."""

    name: str
    make: Callable[[library.Level], Any]
    devices: tuple[str, ...]
    levels: tuple[Level, ...]
    dtypes: tuple[torch.dtype, ...]

    def serves(self, device: str, dtype: torch.dtype, level: Level) -> bool:
        """Tell whether it is meant for these."""
        return device in self.devices and dtype in self.dtypes and level in self.levels


@dataclass(frozen=True, slots=True)
class Op:
    """An op by the name that its file, test and benchmark bear."""

    name: str
    reference: Callable[..., Any]  # in plain torch, for tests
    implementations: tuple[Implementation, ...]  # the first that serves is taken
    otherwise: str | None = None  # what the engine does without one; None: it cannot do without


def _compiled(
    make: Callable[[library.Level], Any],
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
) -> Implementation:
    return Implementation("C++", make, ("cpu",), ("avx512_bf16", "avx2"), dtypes)


def _plain(
    kernel: Any, name: str = "torch", *, dtypes: tuple[torch.dtype, ...] = DTYPES, compiled_too: bool = False
) -> Implementation:
    """Wrap an implementation in plain torch, which serves compiled levels only if nothing is compiled."""
    levels: tuple[Level, ...] = ("torch", "meta", *(("avx512_bf16", "avx2") if compiled_too else ()))
    return Implementation(name, lambda _level: kernel, ("cpu", "meta"), levels, dtypes)


def _triton(module: str, name: str) -> Implementation:
    """Name a kernel whose module imports Triton; on CPU tensors it runs in Triton's interpreter."""
    return Implementation(
        "Triton", lambda _level: getattr(import_module(module), name), ("cuda", "cpu"), ("triton",), DTYPES
    )


def _library(
    kernel: Any,
    name: str,
    *,
    devices: tuple[str, ...] = ("cuda", "cpu"),
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Implementation:
    """Wrap what torch's own library does best beside the Triton kernels."""
    return Implementation(name, lambda _level: kernel, devices, ("triton",), dtypes)


def _meta(kernel: Any) -> Implementation:
    return Implementation("shapes", lambda _level: kernel, ("meta",), ("meta",), DTYPES)


OPS = (
    Op(
        "add_rms_norm",
        add_rms_norm_reference,
        (
            _compiled(add_rms_norm_compiled),
            _triton("kernels.norms.triton_add_rms_norm", "add_rms_norm_triton"),
            _plain(add_rms_norm_reference),
        ),
    ),
    Op(
        "swiglu",
        swiglu_reference,
        (
            _compiled(swiglu_compiled),
            _triton("kernels.activations.triton_gates", "swiglu_triton"),
            _plain(swiglu_reference),
        ),
    ),
    Op(
        "geglu",
        geglu_reference,
        (
            _compiled(geglu_compiled),
            _triton("kernels.activations.triton_gates", "geglu_triton"),
            _plain(geglu_reference),
        ),
    ),
    Op(
        "linear",
        linear_reference,
        (
            Implementation(
                "oneDNN or widened",
                lambda _level: bfloat16_on_cpu(),
                ("cpu",),
                ("avx512_bf16", "avx2", "torch"),
                (torch.bfloat16,),
            ),
            _library(PLAIN, "F.linear"),
            _plain(PLAIN, "F.linear", compiled_too=True),
        ),
    ),
    Op(
        "logits",
        logits_reference,
        (
            _compiled(logits_compiled, (torch.bfloat16,)),
            *(
                _library(HeadKernel(dtype, logits_by_cublas), "cuBLAS", devices=("cuda",), dtypes=(dtype,))
                for dtype in (torch.bfloat16, torch.float16)
            ),
            _library(PLAIN_HEAD, "F.linear"),
            _plain(PLAIN_HEAD, compiled_too=True),
        ),
    ),
    Op(
        "quantized_linear",
        quantized_linear_reference,
        (
            _compiled(quantized_linear_compiled),
            _triton("kernels.linear.triton_quantized_linear", "quantized_linear_triton"),
            _meta(quantized_linear_meta),
            _plain(quantized_linear_reference),
        ),
        otherwise="quantised bases are dequantised or refused",
    ),
    Op(
        "choose_experts",
        choose_experts_reference,
        (
            _triton("kernels.experts.triton_choose_experts", "choose_experts_triton"),
            _plain(choose_experts_reference, compiled_too=True),
        ),
    ),
    Op(
        "sort_by_expert",
        sort_by_expert_reference,
        (
            _triton("kernels.experts.triton_sort_by_expert", "sort_by_expert_triton"),
            _meta(sort_by_expert_meta),
            _plain(sort_on_host, compiled_too=True),
        ),
    ),
    Op(
        "expert_segments",
        expert_segments_reference,
        (
            _triton("kernels.experts.triton_expert_segments", "expert_segments_triton"),
            _meta(expert_segments_meta),
            _plain(segments_on_host, compiled_too=True),
        ),
    ),
    Op(
        "grouped_linear",
        grouped_linear_reference,
        (
            _triton("kernels.experts.triton_grouped_linear", "grouped_linear_triton"),
            _meta(grouped_linear_meta),
        ),
        otherwise="one expert is multiplied after the other",
    ),
    Op(
        "combine_experts",
        combine_experts_reference,
        (
            _triton("kernels.experts.triton_combine_experts", "combine_experts_triton"),
            _plain(combine_experts_reference, compiled_too=True),
        ),
    ),
    Op(
        "paged_attention",
        paged_attention_reference,
        (
            _compiled(paged_attention_compiled),
            _triton("kernels.attention.triton_paged_attention", "paged_attention_triton"),
            _meta(paged_attention_meta),
        ),
        otherwise="blocks are gathered for torch's attention",
    ),
    Op(
        "embedding_lora_add",
        embedding_lora_add_reference,
        (
            _triton("kernels.lora.triton_embedding_add", "embedding_lora_add_triton"),
            _meta(embedding_lora_add_meta),
            _plain(embedding_lora_add_reference, compiled_too=True),
        ),
    ),
    Op(
        "lora_add",
        lora_add_reference,
        (
            _compiled(lora_add_compiled),
            _triton("kernels.lora.triton_add", "lora_add_triton"),
            _meta(lora_add_meta),
            _plain(lora_add_reference),
        ),
    ),
    Op(
        "draw",
        draw_reference,
        (
            _triton("kernels.sampling.triton_draw", "draw_triton"),
            _meta(draw_meta),
            _plain(draw_torch, compiled_too=True),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Every op, resolved for one device, dtype and level."""

    device: str
    dtype: torch.dtype
    level: Level
    add_rms_norm: AddRMSNorm
    swiglu: Gate
    geglu: Gate
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

    def attends_in_place(self, block_size: int) -> bool:
        """Whether attention reads a cache with such blocks where it lies."""
        return self.paged_attention is not None and reads_blocks_of(block_size)


def build(device: str, dtype: torch.dtype, level: Level | None = None) -> Kernels:
    """Resolve every op; MissingKernel names the first that lacks an implementation.

    Without `level` it is the best: on a CPU what the processor and the build have, Triton on a GPU.
    """
    level = level or default_level(device)

    def found(op: str) -> Any:
        return resolve(op, device, dtype, level)

    return Kernels(
        device,
        dtype,
        level,
        add_rms_norm=found("add_rms_norm"),
        swiglu=found("swiglu"),
        geglu=found("geglu"),
        linear=found("linear"),
        logits=found("logits"),
        quantized_linear=found("quantized_linear"),
        lora_add=found("lora_add"),
        lora_add_float32=resolve("lora_add", device, torch.float32, level),
        embedding_lora_add=found("embedding_lora_add"),
        choose_experts=found("choose_experts"),
        sort_by_expert=found("sort_by_expert"),
        expert_segments=found("expert_segments"),
        grouped_linear=found("grouped_linear"),
        combine_experts=found("combine_experts"),
        paged_attention=found("paged_attention"),
        draw=found("draw"),
    )


def resolve(op: str, device: str, dtype: torch.dtype, level: Level) -> Any:
    """Return one op's implementation, or None if the engine can do without; else MissingKernel."""
    found = by_name(op)
    implementation = find(found, device, dtype, level)
    if implementation is not None:
        # Whatever is not compiled takes no notice of the level.
        return implementation.make(level if level in ("avx512_bf16", "avx2") else "torch")
    if found.otherwise is not None:
        return None
    there = [f"{device}/{level}" for device, level in COLUMNS if find(found, device, dtype, level)]
    raise MissingKernel(
        f"no implementation of {op} for device {device!r}, dtype {_short(dtype)}, level {level!r}; "
        f"this dtype has it on {', '.join(there) or 'nothing'}"
    )


def find(op: Op, device: str, dtype: torch.dtype, level: Level) -> Implementation | None:
    """Return the implementation that serves, if there is one."""
    return next((one for one in op.implementations if one.serves(device, dtype, level)), None)


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
