"""Write PEFT-format adapters for a tiny base, every key and tensor of the format under a test's control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.engine.lora.files.base import BaseDescription, ModuleShape, PackedKey, Vocabulary

HIDDEN, INTERMEDIATE, KV, LAYERS, VOCAB_SIZE = 32, 48, 16, 2, 64
SHAPES = {
    "self_attn.q_proj": ModuleShape(HIDDEN, HIDDEN),
    "self_attn.k_proj": ModuleShape(HIDDEN, KV),
    "self_attn.v_proj": ModuleShape(HIDDEN, KV),
    "self_attn.o_proj": ModuleShape(HIDDEN, HIDDEN),
    "mlp.gate_proj": ModuleShape(HIDDEN, INTERMEDIATE),
    "mlp.up_proj": ModuleShape(HIDDEN, INTERMEDIATE),
    "mlp.down_proj": ModuleShape(INTERMEDIATE, HIDDEN),
}
PACKED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
BASE = BaseDescription(
    name="tiny-base",
    num_layers=LAYERS,
    shapes={
        f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in SHAPES.items()
    },
    layout={
        PackedKey(layer, module): tuple(f"model.layers.{layer}.{name}" for name in names)
        for layer in range(LAYERS)
        for module, names in PACKED.items()
    },
    vocabulary=Vocabulary(VOCAB_SIZE, HIDDEN, is_tied=False),
)


def config_of(
    rank: int = 8, targets: tuple[str, ...] = ("q_proj", "v_proj"), **changes: Any
) -> dict[str, Any]:
    """The configuration PEFT writes, in the keys that matter here."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "someone/tiny-base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.1,
        "target_modules": list(targets),
        "bias": "none",
        "inference_mode": True,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
    }
    return config | changes


def tensors_of(
    rank: int = 8,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random A and B for every module whose last part is in `targets`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, shape in BASE.shapes.items():
        if module.rpartition(".")[2] in targets:
            for half, size in (("A", (rank, shape.in_features)), ("B", (shape.out_features, rank))):
                weight = torch.randn(*size, generator=generator).to(dtype)
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = weight
    return tensors


def write_adapter(
    folder: Path,
    *,
    rank: int = 8,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    seed: int = 0,
    config: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> Path:
    """Write configuration and weights; `config` and `tensors` replace the usual ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config or config_of(rank, targets)))
    save_file(
        tensors if tensors is not None else tensors_of(rank, targets, seed=seed),
        folder / "adapter_model.safetensors",
    )
    return folder
