"""What computes each op on a CPU if a row's bits must not depend on the batch, and is not compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kernels.activations.geglu import geglu_reference
from kernels.activations.swiglu import swiglu_reference
from kernels.experts.expert_rows import segments_on_host, sort_on_host
from kernels.linear.row_tiles import linear_in_tiles, logits_in_tiles, quantized_linear_in_tiles
from kernels.lora.embedding_lora_add import embedding_lora_add_by_row
from kernels.lora.reference import lora_add_by_row
from kernels.ops import Implementation, Level
from kernels.row_by_row import (
    add_rms_norm_by_row,
    choose_experts_by_row,
    clamped_swiglu_by_row,
    combine_experts_by_row,
    draw_by_row,
    gate_by_row,
    paged_attention_by_row,
)

_DTYPES = (torch.float32, torch.bfloat16)


def _made(name: str, make: Callable[[], Any], dtypes: tuple[torch.dtype, ...] = _DTYPES) -> Implementation:
    """Describe what serves at every level where nothing is compiled; made anew for each engine."""
    levels: tuple[Level, ...] = ("avx512_bf16", "avx2", "torch")
    return Implementation(name, lambda _level: make(), ("cpu",), levels, dtypes, is_batch_invariant=True)


def _by_row(kernel: Any) -> tuple[Implementation, ...]:
    return (_made("torch, row by row", lambda: kernel),)


BATCH_INVARIANT: Mapping[str, tuple[Implementation, ...]] = {
    "add_rms_norm": _by_row(add_rms_norm_by_row),
    "swiglu": _by_row(gate_by_row(swiglu_reference)),
    "geglu": _by_row(gate_by_row(geglu_reference)),
    "clamped_swiglu": _by_row(clamped_swiglu_by_row),
    "linear": (
        _made("in tiles", lambda: linear_in_tiles(torch.float32), (torch.float32,)),
        _made("in tiles", lambda: linear_in_tiles(torch.bfloat16), (torch.bfloat16,)),
    ),
    "logits": (_made("in tiles", logits_in_tiles),),
    "quantized_linear": (_made("in tiles", quantized_linear_in_tiles),),
    "choose_experts": _by_row(choose_experts_by_row),
    # These two move rows and compute nothing.
    "sort_by_expert": (_made("torch", lambda: sort_on_host),),
    "expert_segments": (_made("torch", lambda: segments_on_host),),
    "grouped_linear": (),
    "combine_experts": _by_row(combine_experts_by_row),
    "paged_attention": _by_row(paged_attention_by_row),
    "embedding_lora_add": _by_row(embedding_lora_add_by_row),
    "lora_add": _by_row(lora_add_by_row),
    "draw": _by_row(draw_by_row),
}
