"""An adapter in the kernels' layout: sub-modules packed, scaling folded into B, ranks rounded up to 16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora_cpu import RANK_MULTIPLE
from kernels.lora_slots import LoRASlice, PackedLoRA, Slice
from workers.engine.errors import AdapterFileError
from workers.engine.lora.base import ModuleShape
from workers.engine.lora.kv_effect import changes_kv
from workers.engine.lora.packed_slots import PackedAdapter, PackedKey, PackedLayout
from workers.engine.lora.peft_config import PeftLoraConfig
from workers.engine.lora.peft_file import LoRAPair
from workers.engine.lora.validate import CheckedAdapter


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One revision's weights, ready to be pointed at."""

    digest: str
    rank: int
    modules: PackedAdapter
    unmixable: str | None = None  # why it is served alone only, never in a LoRAMix
    changes_kv: bool = True
    """Whether it can change keys or values; where not, its requests share cached prefixes with the base."""

    @property
    def num_bytes(self) -> int:
        return sum(packed.num_bytes for packed in self.modules.values())


def pack_adapter(
    adapter: CheckedAdapter, *, shapes: Mapping[str, ModuleShape], layout: PackedLayout, dtype: torch.dtype
) -> AdapterWeights:
    """Pack a checked adapter; modules it does not touch are absent."""
    modules: dict[PackedKey, PackedLoRA] = {}
    for key, paths in layout.items():
        if any(path in adapter.pairs for path in paths):
            modules[key] = _pack_module(paths, adapter, shapes, dtype)
    num_layers = 1 + max(key.layer for key in layout)
    return AdapterWeights(
        adapter.description.digest,
        adapter.description.rank,
        modules,
        changes_kv=changes_kv(adapter.pairs, num_layers),
    )


def _pack_module(
    paths: Sequence[str], adapter: CheckedAdapter, shapes: Mapping[str, ModuleShape], dtype: torch.dtype
) -> PackedLoRA:
    stacked_a: list[Tensor] = []
    slices: list[LoRASlice] = []
    rank_start = column = 0
    for path in paths:
        out_features = shapes[path].out_features
        if pair := adapter.pairs.get(path):
            a, b_t = _layout(path, pair, adapter.config, dtype)
            _check_range(path, a, b_t, adapter)
            ranks = Slice(rank_start, rank_start + a.shape[0])
            slices.append(LoRASlice(Slice(column, column + out_features), ranks, b_t))
            stacked_a.append(a)
            rank_start = ranks.end
        column += out_features
    return PackedLoRA(torch.cat(stacked_a), tuple(slices))


def _layout(path: str, pair: LoRAPair, config: PeftLoraConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rank, in_features = pair.a.shape
    padded = -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
    a = torch.zeros(padded, in_features, dtype=dtype)
    b_t = torch.zeros(padded, pair.b.shape[0], dtype=dtype)
    a[:rank] = pair.a
    # Scaled in float32 and rounded once; in bfloat16 scaling first would round twice.
    b_t[:rank] = (pair.b.float() * config.scaling_of(path)).T
    return a, b_t


def _check_range(path: str, a: Tensor, b_t: Tensor, adapter: CheckedAdapter) -> None:
    if not (a.isfinite().all() and b_t.isfinite().all()):
        raise AdapterFileError(
            f"{adapter.label}: the weights of {path}, scaled by {adapter.config.scaling_of(path):g}, are too "
            f"large for {a.dtype}; correct lora_alpha, or serve the base in float32"
        )
