"""Which adapters leave the base's keys and values as they are."""

from __future__ import annotations

import pytest

from tests.unit.workers.engine.lora.adapter_writer import BASE
from workers.engine.lora.files.base import PackedKey, PackedLayout
from workers.engine.lora.files.kv_effect import changes_kv

LAST = "model.layers.1"
MIXTRAL: PackedLayout = {
    PackedKey(0, "qkv"): tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv"),
    PackedKey(0, "router"): ("model.layers.0.block_sparse_moe.gate",),
    PackedKey(1, "qkv"): tuple(f"{LAST}.self_attn.{name}_proj" for name in "qkv"),
    PackedKey(1, "router"): (f"{LAST}.block_sparse_moe.gate",),
    PackedKey(1, "gate_up", 7): tuple(f"{LAST}.block_sparse_moe.experts.7.{name}" for name in ("w1", "w3")),
    PackedKey(1, "down", 7): (f"{LAST}.block_sparse_moe.experts.7.w2",),
}
PHI3: PackedLayout = {
    PackedKey(1, "qkv"): (f"{LAST}.self_attn.qkv_proj",),
    PackedKey(1, "o"): (f"{LAST}.self_attn.o_proj",),
    PackedKey(1, "gate_up"): (f"{LAST}.mlp.gate_up_proj",),
    PackedKey(1, "down"): (f"{LAST}.mlp.down_proj",),
}


@pytest.mark.parametrize(
    ("layout", "modules"),
    [
        (BASE.layout, ["lm_head"]),
        (BASE.layout, [f"{LAST}.self_attn.q_proj"]),
        (BASE.layout, [f"{LAST}.self_attn.o_proj", f"{LAST}.mlp.down_proj"]),
        (BASE.layout, [f"{LAST}.mlp.gate_proj", f"{LAST}.mlp.up_proj", "lm_head"]),
        (MIXTRAL, [f"{LAST}.block_sparse_moe.experts.7.{name}" for name in ("w1", "w2", "w3")]),
        (MIXTRAL, [f"{LAST}.block_sparse_moe.gate", f"{LAST}.self_attn.q_proj"]),
        (PHI3, [f"{LAST}.mlp.gate_up_proj", f"{LAST}.mlp.down_proj", f"{LAST}.self_attn.o_proj"]),
    ],
)
def test_what_comes_after_the_last_keys_and_values_cannot_change_them(
    layout: PackedLayout, modules: list[str]
) -> None:
    assert not changes_kv(modules, layout)


@pytest.mark.parametrize(
    ("layout", "module"),
    [
        (BASE.layout, "model.embed_tokens"),
        (BASE.layout, f"{LAST}.self_attn.k_proj"),
        (BASE.layout, f"{LAST}.self_attn.v_proj"),
        (BASE.layout, "model.layers.0.self_attn.q_proj"),
        (BASE.layout, "model.layers.0.mlp.down_proj"),
        (BASE.layout, f"{LAST}.input_layernorm"),
        (BASE.layout, f"{LAST}.self_attn.q_proj_and_more"),
        (BASE.layout, "something.new"),
        (MIXTRAL, "model.layers.0.block_sparse_moe.gate"),
        (MIXTRAL, f"{LAST}.block_sparse_moe.experts.8.w1"),
        (PHI3, f"{LAST}.self_attn.qkv_proj"),
    ],
)
def test_all_else_and_all_that_is_unknown_counts_as_changing_them(layout: PackedLayout, module: str) -> None:
    assert changes_kv([module], layout)
    assert changes_kv(["lm_head", module], layout)
