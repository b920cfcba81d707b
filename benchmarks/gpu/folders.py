"""Folders that engine stages serve: a model's config without weights, and adapters of random numbers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import Shapes
from benchmarks.workload import projections
from workers.engine import LoRARequest

TINY = Path(__file__).parents[2] / "examples" / "tiny"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_NUM_WEIGHTS = 8
"""Folders with weights of their own; the others link to theirs and differ in `lora_alpha`."""
_STD = 0.02


def scratch() -> Path:
    """Return the folder that stages share; what one has made is there for the next."""
    folder = Path(tempfile.gettempdir()) / f"lorayard-benchmarks-gpu-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def model_folder(shapes: Shapes, *, ties_head: bool = False, quantization: str | None = None) -> Path:
    """Return a Llama's config with the tiny base's tokenizer, for `load_format="dummy"`.

    What is quantised while it loads has a plain checkpoint; one of AWQ says so itself.
    """
    folder = scratch() / f"llama-{shapes.num_layers}x{shapes.hidden_size}"
    config = model_config(shapes, ties_head=ties_head)
    if quantization == "awq":
        folder = folder.with_name(f"{folder.name}-awq")
        group_size = min(128, shapes.hidden_size // 2)
        config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": group_size}
    folder.mkdir(exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (TINY / "base" / name).exists():
            shutil.copy(TINY / "base" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def model_config(shapes: Shapes, *, ties_head: bool = False) -> dict[str, object]:
    """Return the config of a Llama of these shapes, as transformers reads it too."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shapes.hidden_size,
        "intermediate_size": shapes.intermediate_size,
        "num_hidden_layers": shapes.num_layers,
        "num_attention_heads": shapes.num_heads,
        "num_key_value_heads": shapes.num_kv_heads,
        "head_dim": shapes.head_dim,
        "vocab_size": shapes.vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": ties_head,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def adapters(device: Device, shapes: Shapes, rank: int, count: int) -> list[LoRARequest]:
    """Return adapters of all seven projections, their files written if they are not there yet."""
    parent = scratch() / f"adapters-{shapes.num_layers}x{shapes.hidden_size}-rank{rank}"
    parent.mkdir(exist_ok=True)
    requests = []
    for number in range(count):
        folder = parent / str(number)
        weights = folder / "adapter_model.safetensors"
        folder.mkdir(exist_ok=True)
        config = _adapter_config(shapes, rank, 2 * rank + number)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        if not weights.exists():
            if number < _NUM_WEIGHTS:
                _write_weights(device, shapes, rank, number, weights)
            else:
                os.link(parent / str(number % _NUM_WEIGHTS) / weights.name, weights)
        requests.append(LoRARequest(f"rank{rank}-{number}", 1000 * rank + number + 1, str(folder)))
    return requests


def _adapter_config(shapes: Shapes, rank: int, alpha: int) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [name.rpartition(".")[2] for name, _, _ in projections(shapes)],
    }


def _write_weights(device: Device, shapes: Shapes, rank: int, seed: int, path: Path) -> None:
    generator = device.generator(seed)
    tensors = {}
    for layer in range(shapes.num_layers):
        for name, num_in, num_out in projections(shapes):
            for half, size in (("A", (rank, num_in)), ("B", (num_out, rank))):
                made = torch.randn(*size, generator=generator, device=device.name).mul_(_STD)
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{half}.weight"
                tensors[key] = made.to(torch.bfloat16).cpu()
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.rename(path)  # what a stage was cut off in writing is not there for the next
