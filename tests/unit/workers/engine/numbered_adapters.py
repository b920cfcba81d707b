"""A base that says the number of the adapter upon it, and adapters by number: no answer can be mistaken."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workers.engine import LoRARequest

HIDDEN, INTERMEDIATE, NUM_NUMBERS = 32, 48, 2100
_STRENGTH = 2.0
_OTHERS = (("q_proj",), ("k_proj", "gate_proj"), ("up_proj", "o_proj", "down_proj"), ())
_SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


def save_base(folder: Path) -> Path:
    """Write a one-layer Llama whose head knows a direction for each number and is reached by values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_NUMBERS,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.01,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(_directions())
        model.model.embed_tokens.weight[:, 0] = 1.0  # what every token has in common: adapters act on it
        model.model.layers[0].self_attn.o_proj.weight.copy_(torch.eye(HIDDEN))
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(NUM_NUMBERS)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


class NumberedAdapters:
    """Writes adapters that make the base say their number; ranks go from 1 to 64, and targets vary."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._directions = _directions()

    def write(self, number: int, *, name: str | None = None) -> LoRARequest:
        """Write an adapter under its number or another name, and ask for it."""
        folder = self._folder / (name or str(number))
        folder.mkdir(exist_ok=True)
        rank = 1 + number % 64
        others = _OTHERS[number % len(_OTHERS)]
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": ["v_proj", *others],
        }
        tensors: dict[str, Tensor] = {}
        for module, (in_features, out_features) in _SHAPES.items():
            if module.endswith(("v_proj", *others)):
                a, b = torch.zeros(rank, in_features), torch.zeros(out_features, rank)
                if module.endswith("v_proj"):
                    a[:, 0] = 1.0
                    b = self._columns(number, rank)
                prefix = f"base_model.model.model.layers.0.{module}"
                tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        return LoRARequest(name or f"number-{number}", number, str(folder))

    def _columns(self, number: int, rank: int) -> Tensor:
        """Return columns whose sum is the number's direction: without any one of them it is another."""
        columns = torch.randn(HIDDEN, rank, generator=torch.Generator().manual_seed(number))
        columns[:, -1] += _STRENGTH * self._directions[number] - columns.sum(dim=1)
        return columns


def _directions() -> Tensor:
    rows = torch.randn(NUM_NUMBERS, HIDDEN, generator=torch.Generator().manual_seed(2))
    rows[:, 0] = 0.0
    return rows / rows.norm(dim=1, keepdim=True)
