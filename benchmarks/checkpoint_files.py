"""Writes the benchmark's checkpoint and adapters, random but always the same, once per cache folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from benchmarks.workload import Geometry, projections

CACHE = Path.home() / ".cache" / "lorayard" / "benchmarks"

_WEIGHT_STD = 0.02
_LORA_B_STD = 0.02  # large enough that adapters change most answers, small enough for bfloat16


def checkpoint_folder(cache: Path, geometry: Geometry, seed: int) -> Path:
    """Return the folder of the random base model, written if it is not there."""
    folder = cache / f"llama-{geometry.num_layers}x{geometry.hidden_size}-seed{seed}"
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(_model_config(geometry), indent=2))
        vocab = {f"t{index}": index for index in range(geometry.vocab_size)}
        Tokenizer(models.WordLevel(vocab=vocab, unk_token="t0")).save(str(folder / "tokenizer.json"))
        _save(_base_weights(geometry, seed), folder / "model.safetensors")
    return folder


def adapter_folders(
    cache: Path, base: Path, geometry: Geometry, *, rank: int, num_adapters: int, seed: int
) -> list[Path]:
    """Return the folders of PEFT adapters on all seven projections, written if they are not there."""
    folders = [cache / f"{base.name}-rank{rank}" / f"adapter-{number:02d}" for number in range(num_adapters)]
    for number, folder in enumerate(folders):
        if not (folder / "adapter_model.safetensors").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter_config.json").write_text(json.dumps(_adapter_config(base, rank), indent=2))
            weights = _adapter_weights(geometry, rank, seed + 1 + number)
            _save(weights, folder / "adapter_model.safetensors")
    return folders


def _save(weights: dict[str, Tensor], path: Path) -> None:
    # Renamed at the end: an interrupted run must not leave half a file for the next one.
    part = path.with_suffix(".part")
    save_file(weights, part, metadata={"format": "pt"})
    part.rename(path)


def _model_config(geometry: Geometry) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": geometry.num_layers,
        "hidden_size": geometry.hidden_size,
        "num_attention_heads": geometry.num_heads,
        "num_key_value_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "intermediate_size": geometry.intermediate_size,
        "vocab_size": geometry.vocab_size,
        "max_position_embeddings": geometry.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _adapter_config(base: Path, rank: int) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(name.rpartition(".")[2] for name, _, _ in projections(Geometry())),
    }


def _base_weights(geometry: Geometry, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {"model.embed_tokens.weight": _normal(generator, geometry.vocab_size, geometry.hidden_size)}
    for layer in range(geometry.num_layers):
        prefix = f"model.layers.{layer}"
        for name, num_in, num_out in projections(geometry):
            weights[f"{prefix}.{name}.weight"] = _normal(generator, num_out, num_in)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(geometry.hidden_size, dtype=torch.bfloat16)
    weights["model.norm.weight"] = torch.ones(geometry.hidden_size, dtype=torch.bfloat16)
    return weights


def _adapter_weights(geometry: Geometry, rank: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(geometry.num_layers):
        for name, num_in, num_out in projections(geometry):
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{prefix}.lora_A.weight"] = _normal(generator, rank, num_in)
            weights[f"{prefix}.lora_B.weight"] = _normal(generator, num_out, rank, _LORA_B_STD)
    return weights


def _normal(generator: torch.Generator, rows: int, columns: int, std: float = _WEIGHT_STD) -> Tensor:
    return torch.randn(rows, columns, generator=generator).mul_(std).to(torch.bfloat16)
