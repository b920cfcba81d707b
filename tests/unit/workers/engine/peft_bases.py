"""Small random bases with tied heads, untied heads and biases, and PEFT adapters of every kind."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.unit.workers.engine.conftest import save_tokenizer
from workers.engine import LoRARequest

VOCAB_SIZE = 259
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_TRAINED = ("lora_", "modules_to_save")


def make_base(kind: str) -> PreTrainedModel:
    """Build a random model: "tied", "untied" or "biased"."""
    torch.manual_seed(31)
    if kind == "biased":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
        return model.eval()
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied")).eval()


def save_base(model: PreTrainedModel, folder: Path) -> Path:
    """Write a checkpoint that the engine can open."""
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def train(base: PreTrainedModel, config: LoraConfig, folder: Path, *, seed: int, **saving: Any) -> Path:
    """Write an adapter whose every trained tensor is random and far from where training starts."""
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in _TRAINED):
                    _perturb(name, parameter, generator)
        model.save_pretrained(str(folder), **saving)
    return folder


def _perturb(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if "magnitude" in name:
        parameter *= 1.0 + 0.4 * noise.tanh()
    elif "modules_to_save" in name:
        parameter += 0.2 * noise
    else:
        parameter.copy_(0.25 * noise)


class Oracle:
    """What transformers with PEFT computes for a base and for the adapters in its folders."""

    def __init__(self, base: PreTrainedModel, requests: dict[str, LoRARequest]) -> None:
        self._models: dict[str | None, Any] = {None: base}
        for name, request in requests.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = PeftModel.from_pretrained(copy.deepcopy(base), request.lora_path)
            self._models[name] = model.eval()

    def to(self, dtype: torch.dtype) -> Oracle:
        """Compute in another dtype from now on."""
        for model in self._models.values():
            model.to(dtype)
        return self

    def alias(self, name: str, of: str) -> None:
        """Answer for another name too."""
        self._models[name] = self._models[of]

    def logits(
        self, name: str | None, token_ids: list[int], *, scale: float = 1.0
    ) -> Tensor:  # [num_tokens, vocab_size] float32
        """Return the logits after every token, under one adapter or none."""
        model = self._models[name]
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("default", scale)
        with torch.inference_mode():
            return model(torch.tensor([token_ids])).logits[0].float()
