"""What a family entry says: how an architecture differs from Llama, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Activation = Literal["silu", "gelu_pytorch_tanh"]
LayerType = Literal["full_attention", "sliding_attention"]
LAYER_TYPES: tuple[LayerType, ...] = ("full_attention", "sliding_attention")
RawConfig = Mapping[str, Any]
LayerTypeOf = Callable[[RawConfig, int], LayerType]


@dataclass(frozen=True, slots=True)
class DenseMLPNames:
    """down(activation(gate) * up); the names are those below `mlp` in the file."""

    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")  # one name if the file holds them fused


def every_layer(_config: RawConfig, _layer: int) -> bool:
    """Every layer is one."""
    return True


def always(_config: RawConfig) -> bool:
    """Whatever config.json says."""
    return True


@dataclass(frozen=True, slots=True)
class SparseMLPNames:
    """A router and, per token, the few gated MLPs it chooses; `parent` is their name below the layer."""

    parent: str = "mlp"
    router: str = "gate"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")  # below experts.0; one name if they are fused
    down: str = "down_proj"
    # The first that config.json has counts: the family's own name, which has the default, goes last.
    num_experts_keys: tuple[str, ...] = ("num_local_experts", "num_experts")
    width_key: str = "moe_intermediate_size"
    normalizes: Callable[[RawConfig], bool] = always  # the chosen experts' shares are made to sum to one
    has_experts: Callable[[RawConfig, int], bool] = every_layer  # the other layers are dense
    is_stacked: bool = False  # the file has one parameter for all experts, [num_experts, in, out], no modules
    has_bias: bool = False  # router and experts
    clamps: bool = False  # the gate is `clamped_swiglu`, of gate and up in turns; else they lie in halves


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """Names of a layer's norms; a post norm, if there is one, norms what a block adds to the residual."""

    pre_attention: str | None = "input_layernorm"
    post_attention: str | None = None
    pre_mlp: str | None = "post_attention_layernorm"  # None: the block has no such norm
    post_mlp: str | None = None


def all_full(_config: RawConfig, _layer: int) -> LayerType:
    """Every layer attends to everything before it."""
    return "full_attention"


LLAMA_DEFAULTS: RawConfig = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": False,
}
"""Values that transformers assumes for keys which a config.json leaves out."""


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of config.json; the defaults are Llama's."""

    architecture: str
    model_type: str = ""  # config.json's name of it; empty: not compared
    # What transformers assumes here for keys that a config.json leaves out, other than LLAMA_DEFAULTS.
    defaults: RawConfig = field(default_factory=dict)
    # Keys that only some architectures read; what is not named here is ignored, as transformers does.
    reads: frozenset[str] = frozenset()
    # Keys of which only these values are honoured; any other value is refused by name.
    served: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    rope_types: frozenset[str] = frozenset({"default", "linear", "dynamic", "yarn", "llama3"})
    default_rope: RawConfig = field(default_factory=dict)  # rope_parameters, where there are none
    rope_aliases: Mapping[str, str] = field(default_factory=dict)  # older names of rope types
    local_rope_key: str | None = None  # the key with the rope_theta of layers that have a window
    layer_type: LayerTypeOf = all_full  # if config.json has no layer_types
    rotates: Callable[[RawConfig, int], bool] = every_layer  # queries and keys, by position
    rotates_pairs: bool = False  # columns 0 and 1, 2 and 3, ..., not the first half with the second
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # one name if the file holds them fused
    has_qkv_bias: bool = False  # whatever config.json says
    has_o_bias: bool = True  # if attention_bias, which is of q, k and v too, is read and true
    has_qk_norm: bool = False  # queries and keys are normed per head, before they are rotated
    qk_norm_spans_heads: bool = False  # or all heads of a token as one
    has_sinks: bool = False  # every query head has a score of its own in each softmax
    mlp: DenseMLPNames = DenseMLPNames()
    sparse_mlp: SparseMLPNames | None = None  # if layers have experts; `mlp` is then that of the others
    activation_key: str = "hidden_act"
    activation: Activation = "silu"
    norms: LayerNorms = LayerNorms()
    norm_offset: float = 0.0  # added to every norm weight of the file
    scales_embedding: bool = False  # embeddings are multiplied by sqrt(hidden_size)
