"""What is trained: the base's shape, each adapter's shape, the seeds and the lengths of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, TaskType
from transformers import LlamaConfig

from examples.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID

ROOT = Path(__file__).parent
BASE_DIR = ROOT / "base"
ADAPTERS_DIR = ROOT / "adapters"
BASE_NAME = "lorayard/tiny"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard one stage trains: AdamW, linear warm-up, cosine down to zero."""

    num_steps: int
    peak_lr: float
    seed: int
    batch_size: int = 256
    num_warmup_steps: int = 50


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """One adapter's LoRA shape; the set differs on purpose, so that engines meet every kind."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...] | str
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    num_steps: int = 200

    def schedule(self) -> Schedule:
        """Return how this adapter trains; those that look across the whole word need longer."""
        return Schedule(self.num_steps, peak_lr=5e-3, seed=2, batch_size=128, num_warmup_steps=20)

    def lora_config(self) -> LoraConfig:
        """Return the PEFT configuration that trains and saves this adapter."""
        targets = self.target_modules
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=self.use_rslora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            layers_to_transform=None if self.layers is None else list(self.layers),
        )


def base_config() -> LlamaConfig:
    """Return the base's shape: 0.8 M parameters, grouped-query attention, tied embeddings."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=368,  # three more than the tokenizer has, as checkpoints padded for speed do
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        dtype="float32",
    )


BASE_SCHEDULE = Schedule(num_steps=4000, peak_lr=2e-3, seed=1)

ADAPTERS: dict[str, AdapterRecipe] = {
    "upper": AdapterRecipe(4, 8, ("q_proj", "v_proj")),
    "reverse": AdapterRecipe(8, 16, ATTENTION, num_steps=600),
    "rot13": AdapterRecipe(16, 32, MLP),
    "sort": AdapterRecipe(16, 32, "all-linear", num_steps=600),
    "vowels": AdapterRecipe(8, 16, ATTENTION, use_rslora=True, num_steps=600),
    "consonants": AdapterRecipe(10, 10, ATTENTION + MLP, use_rslora=True, num_steps=600),
    "twice": AdapterRecipe(
        8,
        16,
        ATTENTION + MLP,
        rank_pattern={"v_proj": 12, "gate_proj": 4},
        alpha_pattern={"v_proj": 36},
        num_steps=600,
    ),
    "swapends": AdapterRecipe(6, 12, r".*\.self_attn\.(q|v)_proj"),
    "nextletter": AdapterRecipe(8, 8, ("q_proj", "o_proj", "down_proj")),
    "rotate": AdapterRecipe(8, 16, ("q_proj", "k_proj", "v_proj"), layers=(0, 1, 2)),
}
