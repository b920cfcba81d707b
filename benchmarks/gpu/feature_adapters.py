"""Adapters of every kind for the tiny base, random but always the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.folders import TINY
from workers.engine import LoRARequest

_HIDDEN, _INNER, _QUERIES, _KV, _LAYERS, _VOCAB = 128, 384, 128, 64, 4, 368
_LINEAR = {
    "q_proj": ("self_attn", _HIDDEN, _QUERIES),
    "k_proj": ("self_attn", _HIDDEN, _KV),
    "v_proj": ("self_attn", _HIDDEN, _KV),
    "o_proj": ("self_attn", _QUERIES, _HIDDEN),
    "gate_proj": ("mlp", _HIDDEN, _INNER),
    "up_proj": ("mlp", _HIDDEN, _INNER),
    "down_proj": ("mlp", _INNER, _HIDDEN),
}
_KINDS: dict[str, dict[str, Any]] = {
    "dora": {"r": 6, "targets": tuple(_LINEAR), "use_dora": True},
    "bias": {"r": 5, "targets": ("q_proj", "up_proj", "down_proj"), "lora_bias": True},
    "embedding": {"r": 7, "targets": ("q_proj", "embed_tokens")},
    "head": {"r": 9, "targets": ("v_proj", "lm_head")},
    "head-only": {"r": 2, "targets": ("lm_head",), "use_rslora": True},
    "wide": {"r": 37, "targets": tuple(_LINEAR)},
    "rank-1": {"r": 1, "targets": tuple(_LINEAR)},
}
_STRENGTH, _STRENGTH_OF_VOCABULARY = 0.2, 0.5
"""Root of the size of what is added to a weight: enough to change answers, and no near ties."""


def write(parent: Path) -> dict[str, LoRARequest]:
    """Write an adapter of every kind and return them by kind."""
    requests = {}
    for number, (kind, given) in enumerate(_KINDS.items(), 1):
        folder = parent / kind
        folder.mkdir(parents=True, exist_ok=True)
        config = dict(given)
        targets = config.pop("targets")
        config |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": list(targets)}
        config |= {"lora_alpha": 2 * config["r"], "base_model_name_or_path": "lorayard/tiny"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = _tensors(np.random.default_rng(number), config["r"], targets, given)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        requests[kind] = LoRARequest(kind, 100 + number, str(folder))
    return requests


def shipped() -> dict[str, LoRARequest]:
    """Return the adapters that come with the tiny base, by name."""
    folders = sorted((TINY / "adapters").iterdir())
    return {folder.name: LoRARequest(folder.name, at, str(folder)) for at, folder in enumerate(folders, 1)}


def _tensors(
    draw: np.random.Generator, rank: int, targets: tuple[str, ...], given: dict[str, Any]
) -> dict[str, Tensor]:
    def normal(*size: int, strength: float = _STRENGTH) -> Tensor:
        std = np.float32(strength / rank**0.25)
        return torch.from_numpy(draw.standard_normal(size, dtype=np.float32) * std)

    def wide(*size: int) -> Tensor:
        return normal(*size, strength=_STRENGTH_OF_VOCABULARY)

    tensors: dict[str, Tensor] = {}
    root = "base_model.model"
    if "embed_tokens" in targets:
        tensors[f"{root}.model.embed_tokens.lora_embedding_A"] = wide(rank, _VOCAB)
        tensors[f"{root}.model.embed_tokens.lora_embedding_B"] = wide(_HIDDEN, rank)
    if "lm_head" in targets:
        tensors[f"{root}.lm_head.lora_A.weight"] = wide(rank, _HIDDEN)
        tensors[f"{root}.lm_head.lora_B.weight"] = wide(_VOCAB, rank)
    for layer in range(_LAYERS):
        for target in (one for one in targets if one in _LINEAR):
            room, num_in, num_out = _LINEAR[target]
            module = f"{root}.model.layers.{layer}.{room}.{target}"
            tensors[f"{module}.lora_A.weight"] = normal(rank, num_in)
            tensors[f"{module}.lora_B.weight"] = normal(num_out, rank)
            if given.get("lora_bias"):
                tensors[f"{module}.lora_B.bias"] = 4.0 * normal(num_out)
            if given.get("use_dora"):
                tensors[f"{module}.lora_magnitude_vector"] = 1.0 + 2.0 * normal(num_out)
    return tensors
