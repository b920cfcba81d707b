"""Llama 1 to 3, and everything published in its form."""

from __future__ import annotations

from workers.engine.model.families.family import Family

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    reads=frozenset({"attention_bias", "mlp_bias"}),
)
