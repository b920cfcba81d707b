"""What a config.json leaves out, or says twice, means what transformers' config classes make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.unit.workers.engine.model.test_config import SHAPE, load, load_all
from workers.engine.core.errors import CheckpointError
from workers.engine.model.config import ModelConfig
from workers.engine.model.families import FAMILIES

TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FULL_AND_LOCAL = {
    "full_attention": {"rope_type": "default", "rope_theta": 5e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
SAME_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "rms_norm_eps",
    "tie_word_embeddings",
    "query_pre_attn_scalar",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def theirs(architecture: str, values: dict[str, Any]) -> PreTrainedConfig:
    return CONFIG_MAPPING[FAMILIES[architecture].model_type](**json.loads(json.dumps(values)))


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """What each layer's attention is given as its window in `modeling_*.py`."""
    if config.model_type in ("llama", "gemma", "granite", "olmo2", "glm", "glm4"):
        return [None] * config.num_hidden_layers
    if config.model_type in ("mistral", "mixtral", "phi3", "qwen3_moe"):
        return [config.sliding_window] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]


def assert_same(ours: ModelConfig, config: PreTrainedConfig) -> None:
    heads = config.num_attention_heads
    assert {name: getattr(ours, name) for name in SAME_NAMES} == {
        name: getattr(config, name, None) for name in SAME_NAMES
    }
    assert (ours.num_layers, ours.num_heads, ours.num_kv_heads, ours.head_dim) == (
        config.num_hidden_layers,
        heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    assert [layer.window for layer in ours.layers] == windows_of(config)
    if ours.experts is not None:
        assert ours.experts.num_experts == config.num_local_experts
        assert ours.experts.num_chosen == config.num_experts_per_tok
        assert ours.experts.width == getattr(config, "moe_intermediate_size", config.intermediate_size)
        assert ours.experts.gate_alpha == getattr(config, "swiglu_alpha", None)
        assert ours.experts.gate_limit == getattr(config, "swiglu_limit", None)
        assert ours.experts.normalizes == getattr(config, "norm_topk_prob", True)
    assert_same_rotation(ours, config)


def assert_same_rotation(ours: ModelConfig, config: PreTrainedConfig) -> None:
    rotates = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    assert [layer.rotates for layer in ours.layers] == [bool(rotated) for rotated in rotates]
    by_type = "full_attention" in config.rope_parameters
    for index, layer in enumerate(ours.layers):
        kind = config.layer_types[index] if by_type else None
        block = config.rope_parameters[kind] if by_type else config.rope_parameters
        assert layer.rope.max_position_embeddings == config.max_position_embeddings
        if block["rope_type"] == "default":
            assert (layer.rope.rope_type, layer.rope.rope_theta) == ("default", block["rope_theta"])
            assert layer.rope.partial_rotary_factor == block.get("partial_rotary_factor", 1.0)
        else:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[block["rope_type"]](config, layer_type=kind)
            torch.testing.assert_close(layer.rope.angles(2)[1], frequencies)
            assert layer.rope.attention_scaling == pytest.approx(scaling)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_is_left_out_is_the_family_s_default(architecture: str, tmp_path: Path) -> None:
    assert_same(load_all(tmp_path, {"architectures": [architecture]}), theirs(architecture, {}))


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        *((architecture, {"use_sliding_window": True, "sliding_window": 16}) for architecture in FAMILIES),
        ("Gemma2ForCausalLM", {"sliding_window_pattern": 3}),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8}),
        ("SmolLM3ForCausalLM", {"sliding_window": 16, "no_rope_layer_interval": 2}),
        ("SmolLM3ForCausalLM", {"num_key_value_heads": None, "no_rope_layers": [1, 0, 0, 1]}),
        ("Qwen3MoeForCausalLM", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8}),
        ("Qwen3MoeForCausalLM", {"num_local_experts": 8, "num_experts": 16}),
        ("MixtralForCausalLM", {"num_experts": 4}),
        ("GptOssForCausalLM", {"num_experts": 4, "num_local_experts": 16, "layer_types": None}),
        ("GptOssForCausalLM", {"rope_parameters": None, "attention_bias": False, "swiglu_limit": 5.0}),
        ("GptOssForCausalLM", {"rope_parameters": None, "rope_theta": 1e4}),
        ("GptOssForCausalLM", {"rope_scaling": YARN | {"truncate": False}, "rope_theta": 1e4}),
        ("GptOssForCausalLM", {"rope_parameters": {"rope_type": "default"}}),
        ("GptOssForCausalLM", {"rope_parameters": {}}),
        ("MixtralForCausalLM", {"num_experts": 4, "num_local_experts": 16}),
        (
            "MistralForCausalLM",
            {"head_dim": 16, "layer_types": ["full_attention"] * 4},
        ),
        ("Gemma3ForCausalLM", {"layer_types": ["attention", "sliding_attention"] * 2}),
    ],
)
def test_what_a_family_does_not_read_changes_nothing(
    architecture: str, values: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(load(tmp_path, architecture, **values), theirs(architecture, SHAPE | values))


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [
        # Qwen's recipe for long contexts, done to what transformers 5 saved.
        *(
            (name, {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": theta}})
            for name, theta in {
                "LlamaForCausalLM": 1e4,
                "Qwen2ForCausalLM": 1e4,
                "MixtralForCausalLM": 1e6,
            }.items()
        ),
        (
            "Qwen3ForCausalLM",
            {"rope_scaling": YARN | {"rope_theta": 1e5}, "rope_parameters": {"rope_theta": 1e6}},
        ),
        (
            "Qwen3ForCausalLM",
            {"rope_scaling": YARN, "rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6}},
        ),
        ("LlamaForCausalLM", {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}}),
        ("LlamaForCausalLM", {"rope_theta": 5e5, "rope_parameters": YARN, "rope_scaling": {}}),
        ("LlamaForCausalLM", {"rope_scaling": YARN | {"finetuned": True, "attn_factor": 1}}),
        ("LlamaForCausalLM", {"rope_scaling": YARN, "original_max_position_embeddings": 32}),
        ("MixtralForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        (
            "Phi3ForCausalLM",
            {
                "rope_scaling": {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [2.0] * 4},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
                "original_max_position_embeddings": 64,
            },
        ),
        ("Gemma3ForCausalLM", {"rope_parameters": FULL_AND_LOCAL}),
        (
            "Gemma3ForCausalLM",
            {"rope_parameters": FULL_AND_LOCAL, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        ("Gemma3ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5e5}),
        ("Glm4ForCausalLM", {"rope_scaling": YARN, "head_dim": 16}),
        ("Olmo3ForCausalLM", {"rope_scaling": YARN | {"rope_type": "yarn"}, "rope_theta": 1e4}),
        ("Olmo3ForCausalLM", {"rope_parameters": FULL_AND_LOCAL}),
        (
            "Gemma3ForCausalLM",
            {
                "rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}},
                "original_max_position_embeddings": 32,
            },
        ),
    ],
)
def test_two_rope_keys_mean_what_they_mean_to_transformers(
    architecture: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    values = {"head_dim": 8, **rope} | (
        TWO_KINDS if architecture in ("Gemma3ForCausalLM", "Olmo3ForCausalLM") else {}
    )

    assert_same(load(tmp_path, architecture, **values), theirs(architecture, SHAPE | values))


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        (
            "Qwen2ForCausalLM",
            {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6}},
            "takes the place of rope_parameters.*rope_theta 1000000.0 goes with it: 10000.0 would stand",
        ),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5 goes with it: 1.0 would stand",
        ),
        (
            "LlamaForCausalLM",
            {"rope_parameters": {"rope_type": "default", **YARN}},
            "rope_type is 'default', by which transformers goes, and type, its older name, is 'yarn'",
        ),
        (
            "Gemma3ForCausalLM",
            TWO_KINDS | {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_type is 'default', by which transformers goes, and type, its older name, is 'linear'",
        ),
        (
            "Gemma3ForCausalLM",
            {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_parameters names no type of layer",
        ),
        ("Gemma3ForCausalLM", {"rope_scaling": FULL_AND_LOCAL}, "rope_scaling names types of layers"),
        ("Qwen3ForCausalLM", {"rope_scaling": FULL_AND_LOCAL}, "for full_attention and sliding_attention"),
        (
            "Gemma3ForCausalLM",
            {"rope_parameters": {"sliding_attention": YARN | {"truncate": False}}},
            "truncate is false for one type of layer, which transformers ignores",
        ),
        ("LlamaForCausalLM", {"rope_scaling": YARN | {"attn_factor": 2}}, "attn_factor: Extra inputs"),
        ("LlamaForCausalLM", {"rope_theta": None}, "rope_theta: Input should be a valid number"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": None}, "max_window_layers"),
        (
            "Qwen2ForCausalLM",
            {"layer_types": ["full_attention", "sliding_attention"] * 2},
            "names sliding_attention, and there is no window for it",
        ),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "must have a 1 for every layer that rotates"),
        ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 0}, "no_rope_layer_interval: .*greater than or"),
        (
            "LlamaForCausalLM",
            {"model_type": "mistral"},
            "names LlamaForCausalLM, and model_type, by which transformers goes, is 'mistral', not 'llama'",
        ),
    ],
)
def test_two_readings_are_refused_with_both(
    architecture: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, architecture, **values)


def test_a_config_without_architectures_goes_by_its_model_type(tmp_path: Path) -> None:
    assert load_all(tmp_path, SHAPE | {"model_type": "qwen3"}).architecture == "Qwen3ForCausalLM"
