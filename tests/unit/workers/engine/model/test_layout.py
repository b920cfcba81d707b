"""The axes along which weights would be cut between devices."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.workers.engine.model.test_config import SHAPE
from workers.engine.model.config import load_model_config
from workers.engine.model.layout import layer_modules, weight_shards


def test_inputs_are_cut_by_column_results_by_row_and_norms_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "architectures": ["Qwen2ForCausalLM"]}))

    shards = weight_shards(load_model_config(tmp_path))

    assert shards["model.embed_tokens.weight"] == shards["lm_head.weight"] == "vocabulary"
    assert shards["model.layers.3.self_attn.k_proj.bias"] == "column"
    assert {shards[f"model.layers.0.{name}.weight"] for name in ("self_attn.q_proj", "mlp.up_proj")} == {
        "column"
    }
    assert {shards[f"model.layers.0.{name}.weight"] for name in ("self_attn.o_proj", "mlp.down_proj")} == {
        "row"
    }
    assert shards["model.norm.weight"] == shards["model.layers.0.input_layernorm.weight"] == "replicate"


def test_a_fused_module_names_the_widths_that_are_cut_separately(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "architectures": ["Phi3ForCausalLM"]}))

    qkv, _, gate_up, _ = layer_modules(load_model_config(tmp_path), 0)

    assert [(part.path, part.out_features, part.sections) for part in (*qkv.parts, *gate_up.parts)] == [
        ("self_attn.qkv_proj", 64, (32, 16, 16)),
        ("mlp.gate_up_proj", 96, (48, 48)),
    ]
