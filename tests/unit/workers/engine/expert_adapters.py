"""Adapters with a pair of matrices for every expert, random but always the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from workers.engine.lora.files.base import BaseDescription


def named_as_in(base: BaseDescription, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules of a Mixtral by the names that they have in a base."""
    is_mixtral = any(path.endswith(".w1") for path in base.shapes)
    qwen = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return targets if is_mixtral else tuple(qwen.get(target, target) for target in targets)


def save_adapter(
    base: BaseDescription, targets: tuple[str, ...], rank: int, path: Path, *, use_dora: bool = False
) -> None:
    """Write an adapter with a pair of matrices per expert, as PEFT did when experts were modules."""
    generator = torch.Generator().manual_seed(rank)
    tensors: dict[str, torch.Tensor] = {}
    for module, shape in base.shapes.items():
        # PEFT takes the names of experts' modules for those of experts only.
        is_dense = re.search(r"\.mlp\.\w+_proj$", module)
        if module.rpartition(".")[2] in targets and not is_dense:
            a = torch.randn(rank, shape.in_features, generator=generator) * 0.3
            b = torch.randn(shape.out_features, rank, generator=generator) * 0.3
            tensors |= {
                f"base_model.model.{module}.lora_A.weight": a,
                f"base_model.model.{module}.lora_B.weight": b,
            }
            if use_dora:
                magnitude = 1.0 + torch.rand(shape.out_features, generator=generator)
                tensors[f"base_model.model.{module}.lora_magnitude_vector"] = magnitude
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 6,
        "target_modules": list(targets),
        "use_dora": use_dora,
    }
    layers = {"layers_to_transform": sorted({int(name.split(".")[4]) for name in tensors})}
    (path / "adapter_config.json").write_text(json.dumps(config | layers))
