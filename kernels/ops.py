"""Every op of a model, with what computes it on which device, in which dtype and at which level.

A new kernel is its op's file, a line in `OPS`, its test and its benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import torch

from kernels.activations.clamped_swiglu import clamped_swiglu_compiled, clamped_swiglu_reference
from kernels.activations.geglu import geglu_compiled, geglu_reference
from kernels.activations.swiglu import swiglu_compiled, swiglu_reference
from kernels.attention.paged_attention import (
    paged_attention_compiled,
    paged_attention_meta,
    paged_attention_reference,
)
from kernels.cpu import library
from kernels.experts.choose_experts import choose_experts_reference
from kernels.experts.combine_experts import combine_experts_reference
from kernels.experts.expert_rows import segments_on_host, sort_on_host
from kernels.experts.expert_segments import expert_segments_meta, expert_segments_reference
from kernels.experts.grouped_linear import grouped_linear_meta, grouped_linear_reference
from kernels.experts.sort_by_expert import sort_by_expert_meta, sort_by_expert_reference
from kernels.linear.linear import PLAIN, bfloat16_on_cpu, linear_compiled, linear_reference
from kernels.linear.logits import (
    PLAIN_HEAD,
    HeadKernel,
    logits_by_cublas,
    logits_compiled,
    logits_on_cpu,
    logits_reference,
)
from kernels.linear.quantized_linear import (
    quantized_linear_compiled,
    quantized_linear_meta,
    quantized_linear_reference,
)
from kernels.lora.add import lora_add_meta
from kernels.lora.cpu import lora_add_compiled
from kernels.lora.embedding_lora_add import embedding_lora_add_meta, embedding_lora_add_reference
from kernels.lora.reference import lora_add_reference
from kernels.norms.add_rms_norm import add_rms_norm_compiled, add_rms_norm_reference
from kernels.sampling.draw import draw_meta, draw_reference
from kernels.sampling.torch_draw import draw_torch

Level = Literal["avx512_bf16", "avx2", "torch", "triton", "meta"]
LEVELS: tuple[Level, ...] = get_args(Level)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an op, and where it can be had."""

    name: str
    make: Callable[[library.Level], Any]
    devices: tuple[str, ...]
    levels: tuple[Level, ...]
    dtypes: tuple[torch.dtype, ...]
    is_batch_invariant: bool = False  # a row's bits depend on the row alone

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
    levels: tuple[Level, ...] = ("avx512_bf16", "avx2"),
) -> Implementation:
    return Implementation("C++", make, ("cpu",), levels, dtypes, is_batch_invariant=True)


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
        "clamped_swiglu",
        clamped_swiglu_reference,
        (
            _compiled(clamped_swiglu_compiled),
            _triton("kernels.activations.triton_gates", "clamped_swiglu_triton"),
            _plain(clamped_swiglu_reference),
        ),
    ),
    Op(
        "linear",
        linear_reference,
        (
            _compiled(linear_compiled, (torch.bfloat16,), ("avx2",)),
            Implementation(
                "oneDNN or widened",
                lambda _level: bfloat16_on_cpu(),
                ("cpu",),
                ("avx512_bf16", "torch"),
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
            Implementation("oneDNN or C++", logits_on_cpu, ("cpu",), ("avx512_bf16",), (torch.bfloat16,)),
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
