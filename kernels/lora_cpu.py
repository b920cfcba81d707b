"""LoRA on the CPU: one compiled operator for all runs of a pass, or plain torch run by run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import library
from kernels.lora_slots import LoRASlice, PackedLoRA, PackedModuleSlots
from kernels.row_padding import padded_rows
from kernels.segments import Pass

# With 16 columns or more no shape tried depended on the batch, odd widths included; narrower ones did.
# So packers round ranks up to this.
RANK_MULTIPLE = 16


def add_lora_cpu(
    out: Tensor,  # [num_rows, out_features], changed in place
    x: Tensor,  # [num_rows, in_features]
    lora_pass: Pass,
    module: PackedModuleSlots,
) -> None:
    """Add scale (B(Ax) + bias) of every run's adapter to its rows, then apply its DoRA gain, if it has one.

    Absent sub-modules stay as they are.
    """
    if not library.serves(x):
        add_lora_reference(out, x, lora_pass, module)
    elif module.dtype is not None:  # else no slot holds anything
        _check_dtype(x, module)
        runs = lora_pass.table, lora_pass.scales
        torch.ops.lorayard.lora_add.default(out, x, *runs, module.table, module.columns)


def _check_dtype(x: Tensor, module: PackedModuleSlots) -> None:
    if module.dtype is not x.dtype:
        raise ValueError(
            f"x is {x.dtype} and the adapters are {module.dtype}; load them in the model's dtype"
        )


def add_lora_reference(out: Tensor, x: Tensor, lora_pass: Pass, module: PackedModuleSlots) -> None:
    """Compute `add_lora_cpu` in plain torch: a shrink, and an expand per sub-module, for each run."""
    for start, end, slot, scale in lora_pass.runs:
        weights = module.entries[slot]
        if weights is not None:
            _add_run(out[start:end], x[start:end], weights, scale)


def _add_run(
    out: Tensor,  # [run_rows, out_features], changed in place
    x: Tensor,  # [run_rows, in_features]
    weights: PackedLoRA,
    scale: float,
) -> None:
    num_rows = x.shape[0]
    shrunk = F.linear(padded_rows(x), weights.a)
    if scale != 1.0:
        shrunk *= scale
    for part in weights.slices:
        delta = shrunk[:, part.rank.start : part.rank.end] @ part.b_t
        columns = out[:, part.out.start : part.out.end]
        if part.bias is None and part.dora is None:
            columns += delta[:num_rows]
        else:
            columns.copy_(_finished(columns.float() + delta[:num_rows].float(), part, scale))


def _finished(sums: Tensor, part: LoRASlice, scale: float) -> Tensor:
    if part.bias is not None:
        sums = sums + scale * part.bias
    return sums if part.dora is None else apply_dora(sums, part.dora, scale)


def apply_dora(
    sums: Tensor,  # [num_rows, out_slice] float32, base with its bias, plus adapter
    dora: Tensor,  # [NUM_DORA_TERMS, out_slice] float32
    scale: float,
) -> Tensor:  # [num_rows, out_slice] float32
    """Return m / |W + scale BA| (sums - bias) + bias per column (Liu et al., 2024), as PEFT computes it."""
    magnitude, base, cross, delta, bias = dora.unbind()
    gain = magnitude / (base + scale * (cross + scale * delta)).sqrt()
    return gain * (sums - bias) + bias
