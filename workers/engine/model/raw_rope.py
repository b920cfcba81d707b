"""The rope parameters of config.json, made uniform: two keys, older names, one block or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.engine.model.families import Family
from workers.engine.model.families.family import LAYER_TYPES, LayerType

# What only tells how a model was made, or what other implementations take as one; transformers reads none.
_NOTES = {"finetuned": (True, False), "attn_factor": (1,), "extrapolation_factor": (1,)}
_OUTSIDE = ("rope_theta", "partial_rotary_factor")  # may stand beside the block


def rope_of(filled: Mapping[str, Any], layer_type: LayerType, family: Family) -> dict[str, Any]:
    """Return the rope parameters of one type of layer, old key names replaced by new ones."""
    given, scaling = (_object(filled, key) for key in ("rope_parameters", "rope_scaling"))
    if filled.get("rope_parameters") is None:
        given = family.default_rope
    if family.local_rope_key is None:
        block, theta_key = _one_block(given, scaling, filled), "rope_theta"
    else:
        block = _block_of_type(given, scaling, layer_type)
        theta_key = "rope_theta" if layer_type == "full_attention" else family.local_rope_key
    rope = {name: value for name, value in block.items() if value is not None and name != "type"}
    for note, harmless in _NOTES.items():
        if rope.get(note) in harmless:
            del rope[note]
    rope["rope_type"] = _rope_type(block, family)
    rope.setdefault("rope_theta", filled.get(theta_key))
    rope.setdefault("partial_rotary_factor", filled.get("partial_rotary_factor"))
    if "partial_rotary_factor" not in family.reads and rope["partial_rotary_factor"] != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {rope['partial_rotary_factor']!r}; for {family.architecture} this "
            "engine serves 1.0"
        )
    limit = filled.get("max_position_embeddings")
    if family.local_rope_key is None and "original_max_position_embeddings" in filled:
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


def _one_block(
    given: Mapping[str, Any], scaling: Mapping[str, Any], filled: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return `rope_scaling` if there is one, which takes the place of `rope_parameters`."""
    block = scaling or given
    if kinds := [kind for kind in LAYER_TYPES if kind in block]:
        raise ValueError(
            f"its rope parameters are given for {' and '.join(kinds)}, and transformers reads one block for "
            "all layers of this architecture; leave the type of layer out"
        )
    for key in _OUTSIDE if scaling else ():
        lost, instead = given.get(key), filled.get(key)
        if key not in scaling and lost is not None and lost != instead:
            raise ValueError(
                f"rope_scaling takes the place of rope_parameters, as in transformers, and {key} {lost!r} "
                f"goes with it: {instead!r} would stand; give rope_scaling its own {key}, or write what it "
                "says into rope_parameters"
            )
    return block


def _block_of_type(
    given: Mapping[str, Any], scaling: Mapping[str, Any], layer_type: LayerType
) -> Mapping[str, Any]:
    """Return a block of an architecture that has one for each type; scaling is of full attention alone."""
    if given and not any(kind in given for kind in LAYER_TYPES):
        raise ValueError(
            "rope_parameters names no type of layer, so that transformers ignores what it says; put it below "
            "full_attention or sliding_attention"
        )
    if any(kind in scaling for kind in LAYER_TYPES):
        raise ValueError(
            "rope_scaling names types of layers, and transformers ignores what it says of them; put it into "
            "rope_parameters"
        )
    block = _object(given, layer_type)
    if layer_type == "full_attention" and scaling:
        block = {"rope_type": "default", **block, **scaling}
    if block.get("truncate") is False:
        raise ValueError(
            "truncate is false for one type of layer, which transformers ignores, so that it is true; take "
            "it out"
        )
    return block


def _object(filled: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = filled.get(key) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{key} is {value!r}; it must be an object: repair the config")
    return value
