"""The rope parameters of config.json, made uniform: two keys, older names, one block or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from workers.engine.model.families import Family
from workers.engine.model.families.family import LAYER_TYPES, LayerType

# What only tells how a model was made, or what other implementations take as one; transformers reads none.
_NOTES = {"finetuned": (True, False), "attn_factor": (1,), "extrapolation_factor": (1,)}
_OUTSIDE = ("rope_theta", "partial_rotary_factor")  # may stand beside the block


class _Block(NamedTuple):
    values: Mapping[str, Any]
    theta_key: str  # where rope_theta stands, if not in the block
    is_alone: bool  # there is no other for other types of layer


def rope_of(filled: Mapping[str, Any], layer_type: LayerType, family: Family) -> dict[str, Any]:
    """Return the rope parameters of one type of layer, old key names replaced by new ones."""
    block = _block_of(filled, layer_type, family)
    rope = {name: value for name, value in block.values.items() if value is not None and name != "type"}
    for note, harmless in _NOTES.items():
        if rope.get(note) in harmless:
            del rope[note]
    rope["rope_type"] = _rope_type(block.values, family)
    rope.setdefault("rope_theta", filled.get(block.theta_key))
    rope.setdefault("partial_rotary_factor", filled.get("partial_rotary_factor"))
    if "partial_rotary_factor" not in family.reads and rope["partial_rotary_factor"] != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {rope['partial_rotary_factor']!r}; for {family.architecture} this "
            "engine serves 1.0"
        )
    limit = filled.get("max_position_embeddings")
    if block.is_alone and "original_max_position_embeddings" in filled:
        rope["original_max_position_embeddings"] = filled["original_max_position_embeddings"]
    rope.setdefault("original_max_position_embeddings", limit)
    return rope | {"max_position_embeddings": limit, "head_dim": filled.get("head_dim")}


def _rope_type(block: Mapping[str, Any], family: Family) -> object:
    new, old = (family.rope_aliases.get(str(block.get(key)), block.get(key)) for key in ("rope_type", "type"))
    if new and old and new != old:
        raise ValueError(
            f"rope_type is {new!r}, by which transformers goes, and type, its older name, is {old!r}; "
            "take one of them out"
        )
    rope_type = new or old or "default"
    if rope_type not in family.rope_types:
        raise ValueError(
            f"rope_type is {rope_type!r}; for {family.architecture} this engine serves "
            f"{', '.join(sorted(family.rope_types))}"
        )
    return rope_type


def _block_of(filled: Mapping[str, Any], layer_type: LayerType, family: Family) -> _Block:
    """Return what counts of `rope_parameters` and of `rope_scaling`, which transformers prefers."""
    given, scaling = (_object(filled, key) for key in ("rope_parameters", "rope_scaling"))
    if family.local_rope_key is not None:
        return _block_by_layer_type(given, scaling, layer_type, family.local_rope_key)
    if not scaling:
        return _Block(_of_type(given, layer_type), "rope_theta", not _is_by_layer_type(given))
    replaced = _of_type(given, layer_type)
    for key in _OUTSIDE:
        lost, instead = replaced.get(key), filled.get(key)
        if key not in scaling and lost is not None and lost != instead:
            raise ValueError(
                f"rope_scaling takes the place of rope_parameters, as in transformers, and {key} {lost!r} "
                f"goes with it: {instead!r} would stand; give rope_scaling its own {key}, or write what it "
                "says into rope_parameters"
            )
    return _Block(_of_type(scaling, layer_type), "rope_theta", not _is_by_layer_type(scaling))


def _block_by_layer_type(
    given: Mapping[str, Any], scaling: Mapping[str, Any], layer_type: LayerType, local_key: str
) -> _Block:
    """Return a block of an architecture that has one for each type; scaling is of full attention alone."""
    if given and not _is_by_layer_type(given):
        raise ValueError(
            "rope_parameters names no type of layer, so that transformers ignores what it says; put it below "
            "full_attention or sliding_attention"
        )
    if _is_by_layer_type(scaling):
        raise ValueError(
            "rope_scaling names types of layers, and transformers ignores what it says of them; put it into "
            "rope_parameters"
        )
    block = _object(given, layer_type)
    if layer_type == "full_attention":
        return _Block({"rope_type": "default", **block, **scaling} if scaling else block, "rope_theta", False)
    return _Block(block, local_key, False)


def _is_by_layer_type(block: Mapping[str, Any]) -> bool:
    return any(kind in block for kind in LAYER_TYPES)


def _of_type(block: Mapping[str, Any], layer_type: LayerType) -> Mapping[str, Any]:
    return _object(block, layer_type) if _is_by_layer_type(block) else block


def _object(filled: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = filled.get(key) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{key} is {value!r}; it must be an object: repair the config")
    return value
