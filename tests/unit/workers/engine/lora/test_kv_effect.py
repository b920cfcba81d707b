"""Which adapters leave the base's keys and values as they are."""

from __future__ import annotations

import pytest

from workers.engine.lora.kv_effect import changes_kv

NUM_LAYERS = 3


@pytest.mark.parametrize(
    "modules",
    [
        ["lm_head"],
        ["base_model.lm_head"],
        ["model.layers.2.self_attn.q_proj"],
        ["model.layers.2.self_attn.o_proj", "model.layers.2.mlp.down_proj"],
        ["model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj", "lm_head"],
        ["model.layers.2.mlp.experts.7.down_proj"],
    ],
)
def test_what_comes_after_the_last_keys_and_values_cannot_change_them(modules: list[str]) -> None:
    assert not changes_kv(modules, NUM_LAYERS)


@pytest.mark.parametrize(
    "module",
    [
        "model.embed_tokens",
        "model.layers.2.self_attn.k_proj",
        "model.layers.2.self_attn.v_proj",
        "model.layers.2.self_attn.qkv_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.2.input_layernorm",
        "model.layers.2.self_attn.q_proj_and_more",
        "something.new",
    ],
)
def test_all_else_and_all_that_is_unknown_counts_as_changing_them(module: str) -> None:
    assert changes_kv([module], NUM_LAYERS)
    assert changes_kv(["lm_head", module], NUM_LAYERS)
