"""Adapters that tell their number when they are applied, so that one read for another is found out."""

from __future__ import annotations

from pathlib import Path

import torch

from kernels.lora.segments import Segments
from kernels.registry import build
from tests.unit.workers.engine.lora.adapter_writer import BASE, HIDDEN, config_of, write_adapter
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.residency.manager import LoRAManager

TARGETS = (("q_proj",), ("q_proj", "v_proj"), ("q_proj", "k_proj", "o_proj", "down_proj"))


def numbered_request(folder: Path, number: int) -> LoRARequest:
    """Write an adapter that adds `number` to the first output of every q_proj, for an input of ones."""
    targets = TARGETS[number % len(TARGETS)]
    rank = 1 + number % 20
    tensors = {}
    for module, shape in BASE.shapes.items():
        name = module.rpartition(".")[2]
        if name in targets:
            a, b = torch.zeros(rank, shape.in_features), torch.zeros(shape.out_features, rank)
            if name == "q_proj":
                a[-1, 0] = b[0, -1] = 1.0
                b *= number
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    config = config_of(rank, targets, lora_alpha=rank)
    path = write_adapter(folder / str(number), config=config, tensors=tensors)
    return LoRARequest(f"n{number}", number, str(path), adapter_digest(path))


def answers_of(manager: LoRAManager, slots: list[int]) -> list[float]:
    out = torch.zeros(len(slots), 2 * HIDDEN)
    add_lora = build("cpu", torch.float32).lora_add
    add_lora(out, torch.ones(len(slots), HIDDEN), Segments.from_slots(slots), manager.packed(1, "qkv"))
    return out[:, 0].tolist()
