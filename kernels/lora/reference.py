"""LoRA in plain torch, run by run: what kernels are compared with, and what serves if none is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from kernels.linear.row_padding import padded_rows
from kernels.lora.add import check
from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule, LoRASlice, PackedLoRA


def lora_add_reference(
    out: Tensor,  # [num_rows, out_features], changed in place
    x: Tensor,  # [num_rows, in_features]
    segments: Segments,
    module: LoRAModule,
) -> None:
    """Compute `LoRAAdd`: a shrink, and an expand per sub-module, for each run."""
    check(out, x, segments, module)
    for rows, weights, scales in adapted_rows(segments, module):
        _add_run(out[rows], x[rows], weights, scales)


def lora_add_by_row(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
    """Compute `lora_add_reference` one row at a time: its bits cannot depend on the batch."""
    check(out, x, segments, module)
    for rows, weights, scales in adapted_rows(segments, module, one_by_one=True):
        _add_run(out[rows], x[rows].clone(), weights, scales)


def adapted_rows(
    segments: Segments, module: LoRAModule, *, one_by_one: bool = False
) -> Iterator[tuple[slice, PackedLoRA, Tensor]]:
    """Yield rows, what is added to them, and their scales [num_rows, 1]: of a run at once or `one_by_one`."""
    for lora_pass in segments.passes:
        for start, end, slot, expert in lora_pass.runs:
            weights = module.weights(slot, expert)
            if weights is None:
                continue
            step = 1 if one_by_one else max(1, end - start)
            for first in range(start, end, step):
                rows = slice(first, first + step)
                yield rows, weights, lora_pass.scales[rows, None]


def _add_run(
    out: Tensor,  # [run_rows, out_features], changed in place
    x: Tensor,  # [run_rows, in_features]
    weights: PackedLoRA,
    scales: Tensor,  # [run_rows, 1] float32
) -> None:
    num_rows = x.shape[0]
    shrunk = F.linear(padded_rows(x), weights.a)
    shrunk[:num_rows] *= scales
    for part in weights.slices:
        delta = shrunk[:, part.rank.start : part.rank.end] @ part.b_t
        columns = out[:, part.out.start : part.out.end]
        if part.bias is None and part.dora is None:
            columns += delta[:num_rows]
        else:
            columns.copy_(_finished(columns.float() + delta[:num_rows].float(), part, scales))


def _finished(sums: Tensor, part: LoRASlice, scales: Tensor) -> Tensor:
    if part.bias is not None:
        sums = sums + scales * part.bias
    return sums if part.dora is None else apply_dora(sums, part.dora, scales)


def apply_dora(
    sums: Tensor,  # [num_rows, out_slice] float32, base with its bias, plus adapter
    dora: Tensor,  # [NUM_DORA_TERMS, out_slice] float32
    scales: Tensor,  # [num_rows, 1] float32
) -> Tensor:  # [num_rows, out_slice] float32
    """Return m / |W + scale BA| (sums - bias) + bias per column (Liu et al., 2024), as PEFT computes it."""
    magnitude, base, cross, delta, bias = dora.unbind()
    gain = magnitude / (base + scales * (cross + scales * delta)).sqrt()
    return gain * (sums - bias) + bias
