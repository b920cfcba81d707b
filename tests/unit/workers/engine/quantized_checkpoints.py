"""Quantised copies of a small Llama, with the weights that their own tools read out of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from bitsandbytes import functional as bnb
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from examples.quantized_copy import write_awq, write_gptq
from tests.unit.workers.engine.conftest import EOS_ID, save_tokenizer
from tests.unit.workers.engine.four_bits import dequantized, quantized, stored

Dequantized = Mapping[str, Tensor]  # the linear weights by their names, float32
Writer = Callable[[Path, Path], Dequantized]


def save_plain(folder: Path) -> None:
    """Write the Llama; NF4's blocks of 64 run from row to row of its `down_proj`, 96 wide."""
    torch.manual_seed(21)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        eos_token_id=EOS_ID,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)


def bitsandbytes(**settings: object) -> Writer:
    """Let transformers and bitsandbytes write the copy, and read its files by the published formats."""

    def write(base: Path, target: Path) -> Dequantized:
        shutil.copytree(base, target)
        model = LlamaForCausalLM.from_pretrained(
            base,
            quantization_config=BitsAndBytesConfig(**settings),
            device_map={"": "cpu"},
            dtype=torch.float32,
        )
        model.save_pretrained(target)
        tensors = load_file(target / "model.safetensors")
        return {name: _read(tensors, name) for name in tensors if name.endswith("_proj.weight")}

    return write


def _read(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if tensors[name].dtype is torch.int8:
        return bnb.int8_vectorwise_dequant(tensors[name], tensors[name.replace(".weight", ".SCB")])
    return stored(tensors, name)


def in_flight_nf4(base: Path, target: Path) -> Dequantized:
    """The plain checkpoint, and its weights as their NF4 codes have them."""
    shutil.copytree(base, target)
    return {name: _through_nf4(weight) for name, weight in _linear_weights(base).items()}


def _through_nf4(weight: Tensor) -> Tensor:
    return dequantized(quantized(weight, "nf4"), "nf4", tuple(weight.shape))


def in_flight_int8(base: Path, target: Path) -> Dequantized:
    """The plain checkpoint, and its weights rounded to 127 steps of each row's largest."""
    shutil.copytree(base, target)
    dequantized = {}
    for name, weight in _linear_weights(base).items():
        step = weight.abs().max(dim=1, keepdim=True).values / 127
        dequantized[name] = (weight / step).round() * step
    return dequantized


def _linear_weights(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")}


FORMATS: dict[str, Writer] = {
    "bitsandbytes NF4": bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes NF4, double": bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "bitsandbytes FP4": bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "bitsandbytes int8": bitsandbytes(load_in_8bit=True),
    "AWQ": write_awq,
    "GPTQ": write_gptq,
    "GPTQ by importance": lambda base, target: write_gptq(base, target, desc_act=True),
    "GPTQ v2, one group": lambda base, target: write_gptq(
        base, target, group_size=-1, checkpoint_format="gptq_v2"
    ),
    "GPTQ 8 bits": lambda base, target: write_gptq(base, target, bits=8),
    "NF4 in flight": in_flight_nf4,
    "int8 in flight": in_flight_int8,
}
IN_FLIGHT = {"NF4 in flight": "bitsandbytes", "int8 in flight": "int8"}


def change_settings(folder: Path, **changes: object) -> None:
    """Change entries of a copy's `quantization_config`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))
