"""config.json in its older and newer layouts, and what it says that is not served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workers.engine.core.errors import CheckpointError
from workers.engine.model.config import ModelConfig, load_model_config

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def load(folder: Path, architecture: str, **values: Any) -> ModelConfig:
    return load_all(folder, {**SHAPE, "architectures": [architecture], **values})


def load_all(folder: Path, values: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return load_model_config(folder)


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.window for layer in config.layers]


def test_mistral_has_its_default_window_unless_the_config_says_null(tmp_path: Path) -> None:
    absent = load(tmp_path, "MistralForCausalLM")
    null = load(tmp_path, "MistralForCausalLM", sliding_window=None)

    assert windows(absent) == [4096] * 4
    assert windows(null) == [None] * 4


def test_llama_reads_no_window(tmp_path: Path) -> None:
    assert windows(load(tmp_path, "LlamaForCausalLM", sliding_window=16)) == [None] * 4


def test_qwen2_has_windows_from_max_window_layers_on_if_it_uses_them(tmp_path: Path) -> None:
    values = {"sliding_window": 16, "max_window_layers": 3}

    unused = load(tmp_path, "Qwen2ForCausalLM", use_sliding_window=False, **values)
    used = load(tmp_path, "Qwen2ForCausalLM", use_sliding_window=True, **values)

    assert windows(unused) == [None] * 4
    assert windows(used) == [None, None, None, 16]
    assert used.windows == (None, 16)


def test_gemma2_alternates_and_gemma3_has_its_pattern(tmp_path: Path) -> None:
    second = load(tmp_path, "Gemma2ForCausalLM", sliding_window=16)
    third = load(tmp_path, "Gemma3ForCausalLM", sliding_window=16, sliding_window_pattern=3)

    assert windows(second) == [16, None, 16, None]
    assert windows(third) == [16, 16, None, 16]
    assert second.tie_word_embeddings
    assert (second.attn_logit_softcapping, second.final_logit_softcapping) == (50.0, 30.0)
    assert (third.attn_logit_softcapping, third.final_logit_softcapping) == (None, None)


def test_gemma3_scales_global_layers_only_in_the_older_layout(tmp_path: Path) -> None:
    old = {
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8},
    }

    config = load(tmp_path, "Gemma3ForCausalLM", sliding_window=16, sliding_window_pattern=2, **old)

    local, full = config.layers[0].rope, config.layers[1].rope
    assert (local.rope_type, local.rope_theta) == ("default", 2e4)
    assert (full.rope_type, full.rope_theta, full.factor) == ("linear", 5e5, 8.0)


def test_phi3_calls_longrope_by_older_names_and_serves_its_original_length(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}

    config = load(
        tmp_path,
        "Phi3ForCausalLM",
        rope_scaling={"type": "su", **factors},
        original_max_position_embeddings=40,
    )

    assert config.layers[0].rope.rope_type == "longrope"
    assert config.max_positions == 40


@pytest.mark.parametrize(
    ("rope", "max_positions"),
    [
        ({"rope_type": "default"}, 128),
        ({"type": "linear", "factor": 2.0}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    ],
)
def test_scaled_positions_reach_as_far_as_they_are_defined(
    rope: dict[str, Any], max_positions: int, tmp_path: Path
) -> None:
    assert load(tmp_path, "LlamaForCausalLM", rope_scaling=rope).max_positions == max_positions


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("OPTForCausalLM", {}, r"architectures is \['OPTForCausalLM'\]; this engine serves Gemma2.*Qwen3"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "longrope"}}, "rope_type is 'longrope'.*linear"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": "2x"}}, "factor: .*number"),
        ("LlamaForCausalLM", {"rope_parameters": {"mrope_section": [1]}}, "mrope_section: Extra inputs"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("GemmaForCausalLM", {"hidden_act": "relu"}, "hidden_act is 'relu'; for GemmaForCausalLM"),
        ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling: .*greater than 0"),
        ("Olmo2ForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("GptOssForCausalLM", {"swiglu_limit": None}, "swiglu_limit is null; give its value"),
        ("GptOssForCausalLM", {"swiglu_limit": -1.0}, "gate_limit: .*greater than 0"),
        ("GptOssForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; for GptOssForCausalLM"),
        (
            "Gemma2ForCausalLM",
            {"hidden_activation": "gelu"},
            "hidden_activation is 'gelu'.*gelu_pytorch_tanh",
        ),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("Gemma2ForCausalLM", {"layer_types": ["chunked_attention"] * 4}, "layer_types.0: .*'full_att"),
        (
            "Gemma2ForCausalLM",
            {"layer_types": ["full_attention"]},
            "layer_types names 1, and num_hidden_layers is 4",
        ),
        ("Gemma2ForCausalLM", {"sliding_window": 0}, "sliding_window: .*greater than or equal to 1"),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 0}, "sliding_window_pattern: .*greater than"),
        ("Qwen2ForCausalLM", {"max_window_layers": "2"}, "max_window_layers: .*valid integer"),
        (
            "Qwen2ForCausalLM",
            {"eos_token_id": ["</s>"]},
            "eos_token_id names '</s>', but this model's tokens",
        ),
        ("LlamaForCausalLM", {"rope_scaling": [1]}, r"rope_scaling is \[1\]; it must be an object"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.4}, "3 columns of a head would be rotated"),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
            "short_factor has 1 numbers, not 4",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    architecture: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, architecture, **values)
