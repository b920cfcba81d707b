"""config.json as it lies on disk, made uniform: old and new layouts, defaults, refusals by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.engine.core.errors import CheckpointError
from workers.engine.model.families import FAMILIES, Family
from workers.engine.model.families.family import LayerType

LAYER_TYPES: tuple[LayerType, ...] = ("full_attention", "sliding_attention")
# Keys of the config that only the families which name them read.
_OPTIONAL = (
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a file's JSON object, None if there is no file."""
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}; download the checkpoint again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds no JSON object; download the checkpoint again")
    return raw


def family_of(raw: Mapping[str, Any], path: Path) -> Family:
    """Return the entry of the checkpoint's architecture."""
    architectures = raw.get("architectures")
    if isinstance(architectures, list) and len(architectures) == 1:
        family = FAMILIES.get(str(architectures[0]))
        if family is not None:
            return family
    raise CheckpointError(
        f"{path}: architectures is {architectures!r}; this engine serves {', '.join(sorted(FAMILIES))}"
    )


def refuse_unhonoured(raw: Mapping[str, Any], family: Family, path: Path) -> None:
    """Refuse values that change what the model computes and that this engine does not compute."""
    served: dict[str, tuple[object, ...]] = {
        family.activation_key: (family.activation,),
        **family.served,
    }
    for key, allowed in served.items():
        value = raw.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{path}: {key} is {value!r}; for {family.architecture} this engine serves {allowed[0]!r}"
            )


def with_defaults(raw: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Fill in what a config.json may leave out; drop what this architecture does not read, and nulls."""
    unread = [key for key in _OPTIONAL if key not in family.reads]
    filled = {
        key: value
        for key, value in {**family.defaults, **raw}.items()
        if key not in unread and value is not None
    }
    heads, hidden = filled.get("num_attention_heads"), filled.get("hidden_size")
    filled.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        filled.setdefault("head_dim", hidden // heads)
    filled.setdefault("rms_norm_eps", 1e-6)
    if not filled.get("use_sliding_window", True):
        filled.pop("sliding_window", None)
    return filled


def layer_types(filled: Mapping[str, Any], family: Family) -> list[LayerType]:
    """Return each layer's type, from config.json or by the family's rule."""
    num_layers = filled["num_hidden_layers"]
    listed = filled.get("layer_types") or [family.layer_type(filled, layer) for layer in range(num_layers)]
    if len(listed) != num_layers:
        raise ValueError(f"layer_types has {len(listed)} entries for {num_layers} layers; repair the config")
    return list(listed)


def experts_of(filled: Mapping[str, Any], family: Family) -> dict[str, Any] | None:
    """Return the experts' numbers under one set of names, None if the architecture has none."""
    sparse = family.sparse_mlp
    if sparse is None:
        return None
    in_layer = tuple(sparse.has_experts(filled, layer) for layer in range(filled["num_hidden_layers"]))
    if not any(in_layer):
        return None
    return {
        "num_experts": next((filled[key] for key in sparse.num_experts_keys if key in filled), None),
        "num_chosen": filled.get("num_experts_per_tok"),
        "width": filled.get(sparse.width_key),
        "normalizes": sparse.normalizes(filled),
        "in_layer": in_layer,
    }


def rope_of(filled: Mapping[str, Any], layer_type: LayerType, family: Family) -> dict[str, Any]:
    """Return the rope parameters of one type of layer, old key names replaced by new ones."""
    key = "rope_parameters" if filled.get("rope_parameters") else "rope_scaling"
    given = _object(filled, key)
    local_key = family.local_rope_key if layer_type == "sliding_attention" else None
    if any(kind in given for kind in LAYER_TYPES):
        given = _object(given, layer_type)
    elif local_key:
        given = {}  # the older layout scales the other layers only
    rope = {name: value for name, value in given.items() if value is not None and name != "type"}
    rope_type = given.get("rope_type") or given.get("type") or "default"
    rope["rope_type"] = family.rope_aliases.get(rope_type, rope_type)
    if rope["rope_type"] not in family.rope_types:
        raise ValueError(
            f"rope_type is {rope['rope_type']!r}; for {family.architecture} this engine serves "
            f"{', '.join(sorted(family.rope_types))}"
        )
    rope.setdefault("rope_theta", filled.get(local_key or "rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", filled.get("partial_rotary_factor", 1.0))
    if "partial_rotary_factor" not in family.reads and rope["partial_rotary_factor"] != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {rope['partial_rotary_factor']!r}; for {family.architecture} this "
            "engine serves 1.0"
        )
    limit = filled.get("max_position_embeddings")
    if "original_max_position_embeddings" in filled:
        rope["original_max_position_embeddings"] = filled["original_max_position_embeddings"]
    rope.setdefault("original_max_position_embeddings", limit)
    return rope | {"max_position_embeddings": limit, "head_dim": filled.get("head_dim")}


def _object(filled: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = filled.get(key) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{key} is {value!r}; it must be an object: repair the config")
    return value


def as_ids(value: int | list[int] | None) -> list[int]:
    """Return token ids that a config gives as one number, a list or nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
