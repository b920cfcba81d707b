"""Granite: Llama with four multipliers, of embeddings, scores, what each block adds, and logits."""

from __future__ import annotations

from workers.engine.model.families.family import Family

_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")

GRANITE = Family(
    architecture="GraniteForCausalLM",
    model_type="granite",
    defaults=dict.fromkeys(_MULTIPLIERS, 1.0),
    reads=frozenset({"attention_bias", "mlp_bias", *_MULTIPLIERS}),
)
