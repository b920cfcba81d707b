"""A small model with experts and adapters on every one of them, random but always the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.folders import TINY
from workers.engine import LoRARequest

_HIDDEN, _WIDTH, _HEAD_DIM, _HEADS, _KV_HEADS = 64, 48, 32, 4, 2
_LAYERS, _EXPERTS, _CHOSEN, _VOCAB = 2, 8, 2, 368
_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": _HIDDEN,
    "intermediate_size": 2 * _WIDTH,
    "moe_intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "num_experts": _EXPERTS,
    "num_experts_per_tok": _CHOSEN,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": _VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ATTENTION = {
    "q_proj": (_HIDDEN, _HEADS * _HEAD_DIM),
    "k_proj": (_HIDDEN, _KV_HEADS * _HEAD_DIM),
    "v_proj": (_HIDDEN, _KV_HEADS * _HEAD_DIM),
    "o_proj": (_HEADS * _HEAD_DIM, _HIDDEN),
}
_EXPERT = {"gate_proj": (_HIDDEN, _WIDTH), "up_proj": (_HIDDEN, _WIDTH), "down_proj": (_WIDTH, _HIDDEN)}
_ADAPTERS: dict[str, dict[str, Any]] = {
    "experts": {"r": 4, "target_modules": [*_EXPERT, "gate"]},
    "attention": {"r": 5, "target_modules": ["q_proj", "o_proj", "down_proj"]},
    "dora": {"r": 3, "target_modules": ["up_proj", "down_proj"], "use_dora": True},
}


def write_model(folder: Path) -> Path:
    """Write the model with the tiny base's tokenizer, and return its folder."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (TINY / "base" / name).exists():
            shutil.copy(TINY / "base" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    draw, tensors = np.random.default_rng(1), {}
    for name, (num_in, num_out) in _linears().items():
        tensors[f"{name}.weight"] = _normal(draw, num_out, num_in, std=1.5 * num_in**-0.5)
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = _normal(draw, _VOCAB, _HIDDEN, std=0.4)
    norms = {"input_layernorm": _HIDDEN, "post_attention_layernorm": _HIDDEN}
    norms |= {"self_attn.q_norm": _HEAD_DIM, "self_attn.k_norm": _HEAD_DIM}
    for layer in range(_LAYERS):
        for name, width in norms.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = 1 + _normal(draw, width, std=0.2)
    tensors["model.norm.weight"] = torch.ones(_HIDDEN)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_adapters(parent: Path) -> dict[str, LoRARequest]:
    """Write the adapters, a pair of matrices for each expert, and return them by name."""
    requests = {}
    for number, (name, given) in enumerate(_ADAPTERS.items(), start=1):
        folder = parent / name
        folder.mkdir(parents=True)
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "lora_alpha": 2 * given["r"], **given}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        draw, tensors = np.random.default_rng(10 + number), {}
        for module, (num_in, num_out) in _linears().items():
            if module.rpartition(".")[2] in given["target_modules"]:
                key = f"base_model.model.{module}"
                tensors[f"{key}.lora_A.weight"] = _normal(draw, given["r"], num_in, std=0.2)
                tensors[f"{key}.lora_B.weight"] = _normal(draw, num_out, given["r"], std=0.2)
                if given.get("use_dora"):
                    tensors[f"{key}.lora_magnitude_vector"] = 1.5 + _normal(draw, num_out, std=0.2)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        requests[name] = LoRARequest(name, number, str(folder))
    return requests


def _linears() -> dict[str, tuple[int, int]]:
    """Return widths in and out of every linear module of the layers."""
    modules: dict[str, tuple[int, int]] = {}
    for layer in range(_LAYERS):
        parent = f"model.layers.{layer}"
        modules |= {f"{parent}.self_attn.{name}": widths for name, widths in _ATTENTION.items()}
        modules[f"{parent}.mlp.gate"] = (_HIDDEN, _EXPERTS)
        for expert in range(_EXPERTS):
            modules |= {f"{parent}.mlp.experts.{expert}.{name}": widths for name, widths in _EXPERT.items()}
    return modules


def _normal(draw: Generator, *size: int, std: float) -> Tensor:
    return torch.from_numpy(draw.standard_normal(size, dtype=np.float32) * np.float32(std))
