from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workers.engine.core.errors import CheckpointError
from workers.engine.lora.files.base import (
    ModuleShape,
    PackedKey,
    Vocabulary,
    describe_base,
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def test_shapes_come_from_config_json_alone(tmp_path: Path) -> None:
    base = describe_base(_checkpoint(tmp_path / "my-llama"))

    assert base.name == "my-llama"
    assert base.num_layers == 3
    assert len(base.shapes) == 21
    assert base.shapes["model.layers.2.self_attn.q_proj"] == ModuleShape(32, 32)
    assert base.shapes["model.layers.0.self_attn.k_proj"] == ModuleShape(32, 16)
    assert base.shapes["model.layers.0.self_attn.o_proj"] == ModuleShape(32, 32)
    assert base.shapes["model.layers.1.mlp.down_proj"] == ModuleShape(48, 32)


def test_the_vocabulary_comes_from_config_json_too(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "my-llama", tie_word_embeddings=True)

    base = describe_base(folder)

    assert base.vocabulary == Vocabulary(64, 32, is_tied=True, checkpoint=str(folder))
    assert base.adaptable["model.embed_tokens"] == ModuleShape(64, 32)
    assert base.adaptable["lm_head"] == ModuleShape(32, 64)


def test_the_layout_packs_qkv_and_gate_up_in_order(tmp_path: Path) -> None:
    layout = describe_base(_checkpoint(tmp_path / "my-llama")).layout

    assert len(layout) == 12
    assert layout[PackedKey(1, "qkv")] == tuple(f"model.layers.1.self_attn.{part}_proj" for part in "qkv")
    assert layout[PackedKey(0, "gate_up")] == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")


def test_head_dim_and_kv_heads_follow_the_configuration_or_its_defaults(tmp_path: Path) -> None:
    wide = describe_base(_checkpoint(tmp_path / "wide", head_dim=16))
    plain = describe_base(_checkpoint(tmp_path / "plain", num_key_value_heads=None, head_dim=None))

    assert wide.shapes["model.layers.0.self_attn.q_proj"] == ModuleShape(32, 64)
    assert wide.shapes["model.layers.0.self_attn.o_proj"] == ModuleShape(64, 32)
    assert plain.shapes["model.layers.0.self_attn.k_proj"] == ModuleShape(32, 32)


def test_the_name_is_the_given_one_else_the_configurations_else_the_folders(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "base", _name_or_path="someone/tiny")

    assert describe_base(folder, name="served").name == "served"
    assert describe_base(folder).name == "someone/tiny"
    assert describe_base(_checkpoint(tmp_path / "plain", _name_or_path="")).name == "plain"


def test_the_shapes_are_those_of_the_real_model(tmp_path: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(tmp_path / "base")
    linear = {
        name: ModuleShape(module.in_features, module.out_features)
        for name, module in tiny_llama.named_modules()
        if hasattr(module, "in_features") and name != "lm_head"
    }

    assert describe_base(tmp_path / "base").shapes == linear


def test_unreadable_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        describe_base(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        describe_base(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        describe_base(tmp_path)
    with pytest.raises(CheckpointError, match="hidden_size: Input should be a valid integer"):
        describe_base(_checkpoint(tmp_path / "odd", hidden_size="wide"))
