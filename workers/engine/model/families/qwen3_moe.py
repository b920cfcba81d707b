"""Qwen 3 with experts, in all layers or in some; a window, if there is one, is every layer's."""

from __future__ import annotations

from dataclasses import replace

from workers.engine.model.families.family import RawConfig, SparseMLPNames
from workers.engine.model.families.layer_types import all_sliding
from workers.engine.model.families.qwen2 import QWEN_DEFAULTS
from workers.engine.model.families.qwen3 import QWEN3


def _has_experts(config: RawConfig, layer: int) -> bool:
    is_due = (layer + 1) % config["decoder_sparse_step"] == 0
    return is_due and layer not in config["mlp_only_layers"]


def _normalizes(config: RawConfig) -> bool:
    return bool(config["norm_topk_prob"])


QWEN3_MOE = replace(
    QWEN3,
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    defaults={
        **QWEN_DEFAULTS,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": False,
    },
    reads=frozenset({"attention_bias", "sliding_window", "use_sliding_window"}),
    layer_type=all_sliding,
    sparse_mlp=SparseMLPNames(normalizes=_normalizes, has_experts=_has_experts),
)
