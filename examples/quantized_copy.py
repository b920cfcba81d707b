"""Writes AWQ and GPTQ copies of a plain checkpoint, by rounding to nearest, in plain torch.

It is for examples and tests: real AWQ and GPTQ choose their codes with sample data and lose less. The files'
layout is theirs, written from its description in docs/quantization.md and sharing no code with the reader.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Grouped(NamedTuple):
    """A weight W[output, input] = (codes - zeros) * scales, with groups along the inputs."""

    codes: Tensor  # [in_features, out_features] int64
    scales: Tensor  # [num_groups, out_features] float16
    zeros: Tensor  # [num_groups, out_features] int64
    groups: Tensor  # [in_features] int64: the group of each input

    def dequantized(self) -> Tensor:  # [out_features, in_features] float32
        """Return what the codes stand for."""
        return ((self.codes - self.zeros[self.groups]) * self.scales.float()[self.groups]).T.contiguous()


def write_awq(base: Path, target: Path, *, group_size: int = 32) -> Tensors:
    """Write an AWQ copy of `base` to `target`; return its linear weights, dequantised, by name."""
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return _write(base, target, settings, lambda weight: _awq(weight, group_size))


def write_gptq(
    base: Path,
    target: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    desc_act: bool = False,
    checkpoint_format: str = "gptq",
) -> Tensors:
    """Write a GPTQ copy of `base` to `target`; return its linear weights, dequantised, by name."""
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": desc_act,
        "sym": False,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
    }
    offset = 1 if checkpoint_format == "gptq" else 0
    return _write(base, target, settings, lambda weight: _gptq(weight, bits, group_size, desc_act, offset))


def round_to_nearest(
    weight: Tensor,  # [out_features, in_features]
    bits: int,
    groups: Tensor,  # [in_features] int64
) -> Grouped:
    """Choose scales and zeros that span each group's values."""
    num_groups, largest = int(groups.max()) + 1, (1 << bits) - 1
    scales, zeros = [], []
    for group in range(num_groups):
        values = weight.T[groups == group]
        low, high = values.amin(dim=0).clamp(max=0), values.amax(dim=0).clamp(min=0)
        scale = ((high - low) / largest).clamp(min=1e-6).half()
        scales.append(scale)
        zeros.append((-low / scale.float()).round().clamp(0, largest).long())
    scale, zero = torch.stack(scales), torch.stack(zeros)
    codes = (weight.T / scale.float()[groups]).round().long() + zero[groups]
    return Grouped(codes.clamp(0, largest), scale, zero, groups)


def pack(
    codes: Tensor,  # [num_words, 32 / bits, ...] int64: the codes of each word, the lowest bits first
    bits: int,
) -> Tensor:  # [num_words, ...] int32
    """Put codes into words of 32 bits."""
    words = torch.zeros_like(codes[:, 0])
    for place in range(32 // bits):
        words |= codes[:, place] << (bits * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _awq(weight: Tensor, group_size: int) -> tuple[Tensors, Tensor]:
    groups = torch.arange(weight.shape[1]) // group_size
    quantized = round_to_nearest(weight, 4, groups)

    def pack_outputs(rows: Tensor) -> Tensor:  # [num_rows, out_features] to [num_rows, out_features / 8]
        eights = rows.T.reshape(-1, 8, rows.shape[0])
        return pack(eights[:, list(_AWQ_ORDER)], 4).T.contiguous()

    tensors = {
        "qweight": pack_outputs(quantized.codes),
        "qzeros": pack_outputs(quantized.zeros),
        "scales": quantized.scales,
    }
    return tensors, quantized.dequantized()


def _gptq(weight: Tensor, bits: int, group_size: int, desc_act: bool, offset: int) -> tuple[Tensors, Tensor]:
    in_features, per_word = weight.shape[1], 32 // bits
    groups = torch.arange(in_features) // (in_features if group_size == -1 else group_size)
    if desc_act:
        # GPTQ groups inputs by how large they are in its sample data: some order, one for all that read them.
        groups = groups[torch.randperm(in_features, generator=torch.Generator().manual_seed(in_features))]
    quantized = round_to_nearest(weight, bits, groups)
    stored_zeros = (quantized.zeros - offset) & ((1 << bits) - 1)
    tensors = {
        "qweight": pack(quantized.codes.reshape(-1, per_word, weight.shape[0]), bits).contiguous(),
        "qzeros": pack(stored_zeros.T.reshape(-1, per_word, stored_zeros.shape[0]), bits).T.contiguous(),
        "scales": quantized.scales,
        "g_idx": groups.to(torch.int32),
    }
    return tensors, quantized.dequantized()


def _write(
    base: Path,
    target: Path,
    settings: dict[str, object],
    quantize: Callable[[Tensor], tuple[Tensors, Tensor]],
) -> Tensors:
    shutil.copytree(base, target)
    config = json.loads((base / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    tensors, dequantized = load_file(base / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        stored, dequantized[name] = quantize(tensors.pop(name).float())
        tensors |= {name.replace("weight", part): tensor for part, tensor in stored.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return dequantized
