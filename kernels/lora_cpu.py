"""LoRA on the CPU: one compiled operator for all runs of a packed module, or plain torch run by run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu import library
from kernels.lora_slots import PackedLoRA, PackedModuleSlots
from kernels.segments import Segments

# MKL's sgemm picks its loop by the row count and rounds differently unless that is a multiple of 4: 1-3, 5-7,
# 9 and 11 rows differed in the last bits from the same rows in a larger batch (torch 2.13, AVX-512, 2026-11).
# bfloat16 through oneDNN was the same for all row counts tried.
ROW_MULTIPLE = 4
# With 16 columns or more no shape tried depended on the batch, odd widths included; narrower ones did.
# So packers round ranks up to this.
RANK_MULTIPLE = 16


def add_lora_cpu(
    out: Tensor,  # [num_rows, out_features], changed in place
    x: Tensor,  # [num_rows, in_features]
    segments: Segments,
    module: PackedModuleSlots,
) -> None:
    """Add B(Ax) of every run's adapter to its rows; base rows and absent sub-modules stay as they are."""
    if not library.serves(x):
        add_lora_reference(out, x, segments, module)
    elif module.dtype is not None:  # else no slot holds anything
        _check_dtype(x, module)
        torch.ops.lorayard.lora_add.default(out, x, segments.lora_run_table, module.table, module.columns)


def _check_dtype(x: Tensor, module: PackedModuleSlots) -> None:
    if module.dtype is not x.dtype:
        raise ValueError(
            f"x is {x.dtype} and the adapters are {module.dtype}; load them in the model's dtype"
        )


def add_lora_reference(out: Tensor, x: Tensor, segments: Segments, module: PackedModuleSlots) -> None:
    """Compute `add_lora_cpu` in plain torch: a shrink, and an expand per sub-module, for each run."""
    for start, end, slot in segments.lora_runs:
        weights = module.entries[slot]
        if weights is not None:
            _add_run(out[start:end], x[start:end], weights)


def _add_run(
    out: Tensor,  # [run_rows, out_features], changed in place
    x: Tensor,  # [run_rows, in_features]
    weights: PackedLoRA,
) -> None:
    num_rows = x.shape[0]
    shrunk = F.linear(_padded_rows(x), weights.a)
    for columns, ranks, b_t in weights.slices:
        delta = shrunk[:, ranks.start : ranks.end] @ b_t
        out[:, columns.start : columns.end] += delta[:num_rows]


def _padded_rows(
    x: Tensor,  # [run_rows, in_features]
) -> Tensor:
    missing = -x.shape[0] % ROW_MULTIPLE
    if missing == 0 or x.dtype is not torch.float32:
        return x
    return F.pad(x, (0, 0, 0, missing))
