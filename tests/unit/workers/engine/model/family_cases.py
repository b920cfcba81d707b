"""A tiny random model of every family and variant that is served, as transformers makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCAB_SIZE = 128
MakeModel = Callable[[], PreTrainedModel]
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Large enough that no two logits are close.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
TWO_LAYERS = {"num_hidden_layers": 2}
WINDOW = 21  # inside a block of the cache, and shorter than the prompts


def _llama(**changes: Any) -> MakeModel:
    return lambda: LlamaForCausalLM(LlamaConfig(**SHAPE | changes))


def _scaled_llama(rope_type: str, **parameters: Any) -> MakeModel:
    max_positions = parameters.pop("max_position_embeddings", 128)
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}
    return _llama(rope_parameters=rope, max_position_embeddings=max_positions)


CASES: dict[str, MakeModel] = {
    "llama-with-wide-heads": _llama(head_dim=20, tie_word_embeddings=True),
    "llama-linear": _scaled_llama("linear", factor=2.0),
    "llama-dynamic": _scaled_llama("dynamic", factor=3.0, max_position_embeddings=48),
    "llama-yarn": _scaled_llama("yarn", factor=4.0, original_max_position_embeddings=32),
    "llama-yarn-attention-factor": _scaled_llama(
        "yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.9, truncate=False
    ),
    "llama3": _scaled_llama(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama-biases": _llama(**TWO_LAYERS, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None, head_dim=16)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen2-sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
    "qwen3-sliding": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SHAPE,
            head_dim=16,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "gemma": lambda: GemmaForCausalLM(
        GemmaConfig(**SHAPE | TWO_LAYERS, head_dim=16, tie_word_embeddings=False, hidden_act="gelu")
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            # Tied and scaled, larger embeddings would only ever repeat the last token.
            **SHAPE | {"initializer_range": 0.06},
            attention_bias=True,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=9.0,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SHAPE,
            attention_bias=True,
            tie_word_embeddings=False,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        )
    ),
    "granite": lambda: GraniteForCausalLM(
        GraniteConfig(
            **SHAPE | TWO_LAYERS,
            mlp_bias=True,
            embedding_multiplier=5.0,
            attention_multiplier=0.2,
            residual_multiplier=0.4,
            logits_scaling=3.0,
        )
    ),
    "smollm3": lambda: SmolLM3ForCausalLM(
        SmolLM3Config(
            **SHAPE | TWO_LAYERS, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=WINDOW
        )
    ),
    "olmo2": lambda: Olmo2ForCausalLM(
        # What its blocks add is normed: smaller embeddings would be lost in it.
        Olmo2Config(**SHAPE | TWO_LAYERS | {"initializer_range": 1.0}, attention_bias=True)
    ),
    "olmo3": lambda: Olmo3ForCausalLM(
        Olmo3Config(
            **SHAPE | TWO_LAYERS,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        )
    ),
    "glm": lambda: GlmForCausalLM(GlmConfig(**SHAPE | TWO_LAYERS, head_dim=16, attention_bias=False)),
    "glm4": lambda: Glm4ForCausalLM(Glm4Config(**SHAPE | TWO_LAYERS, head_dim=16)),
    "gpt-oss": lambda: GptOssForCausalLM(
        GptOssConfig(
            **SHAPE | TWO_LAYERS | {"hidden_size": 64, "intermediate_size": 32},  # MXFP4 has blocks of 32
            head_dim=16,
            sliding_window=WINDOW,
            num_local_experts=5,
            num_experts_per_tok=2,
            swiglu_limit=1.0,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "truncate": False,
                "rope_theta": 1.5e5,
            },
        )
    ),
    "phi3": lambda: Phi3ForCausalLM(
        Phi3Config(**SHAPE, sliding_window=WINDOW, rope_parameters={"partial_rotary_factor": 0.5})
    ),
    "phi3-longrope": lambda: Phi3ForCausalLM(
        Phi3Config(
            **SHAPE,
            original_max_position_embeddings=80,
            rope_parameters={
                "rope_type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
                "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
            },
        )
    ),
}

EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SPARSE_CASES: dict[str, MakeModel] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=5, num_experts_per_tok=2)),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHAPE, **EXPERTS, head_dim=16, attention_bias=True, norm_topk_prob=True, mlp_only_layers=[0]
        )
    ),
    "qwen3-moe-raw-shares": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=16, decoder_sparse_step=2)
    ),
}


def make_model(case: str) -> PreTrainedModel:
    """Build a case with random norms, biases and sinks too, which transformers leaves near constants."""
    torch.manual_seed(11)
    model = (CASES | SPARSE_CASES)[case]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias", "sinks")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model
