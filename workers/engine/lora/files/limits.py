"""What an owner's limits come to on a base; limits that contradict each other are refused at the start."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.lora.tables import MAX_RANK, RANK_MULTIPLE
from workers.engine.core.errors import ConfigError
from workers.engine.lora.files.base import BaseDescription
from workers.engine.lora.files.module_filter import allows, check_names
from workers.engine.lora.files.regular_files import MAX_HEADER_BYTES

_FLOAT32_BYTES = 4


def largest_adapter_bytes(
    base: BaseDescription, *, rank: int, dtype: torch.dtype, target_modules: Sequence[str] | None = None
) -> int:
    """Return what LoRA of this rank on all linear layers takes: rank (in + out) numbers for each."""
    padded = -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
    shapes = [shape for module, shape in base.shapes.items() if allows(target_modules, module)]
    return padded * dtype.itemsize * sum(shape.in_features + shape.out_features for shape in shapes)


def largest_files(base: BaseDescription) -> int:
    """Return more bytes than any adapter's weight files have: float32, rank 512, the vocabulary three times.

    Fused experts have the rank twice, and PEFT can save the base's embedding and head too.
    """
    widths = sum(shape.in_features + shape.out_features for shape in base.adaptable.values())
    whole = 0 if base.vocabulary is None else 6 * base.vocabulary.size * base.vocabulary.hidden_size
    return _FLOAT32_BYTES * (2 * MAX_RANK * widths + whole) + 2 * MAX_HEADER_BYTES


def check_limits(
    base: BaseDescription,
    *,
    rank: int,
    dtype: torch.dtype,
    target_modules: Sequence[str] | None,
    max_bytes: int | None,
) -> None:
    """Raise ConfigError for modules that the base lacks, and if the largest allowed adapter cannot fit."""
    if target_modules is not None:
        check_names(target_modules, base.adaptable)
    needed = largest_adapter_bytes(base, rank=rank, dtype=dtype, target_modules=target_modules)
    if max_bytes is not None and max_bytes < needed:
        raise ConfigError(
            f"max_cpu_lora_bytes is {max_bytes}, but one adapter of max_lora_rank ({rank}) on all modules "
            f"takes {needed} bytes; raise the first, lower the second, or give lora_target_modules"
        )
