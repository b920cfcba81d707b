"""config.json as it lies on disk, made uniform: old and new layouts, defaults, refusals by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.engine.core.errors import CheckpointError
from workers.engine.core.json_files import read_json
from workers.engine.model.families import FAMILIES, Family
from workers.engine.model.families.family import LLAMA_DEFAULTS, LayerType

# Keys of the config that only the families which name them read.
_OPTIONAL = (
    "sliding_window",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def family_of(raw: Mapping[str, Any], path: Path) -> Family:
    """Return the entry of the checkpoint's architecture, by its model_type if it names none."""
    architectures, model_type = raw.get("architectures"), raw.get("model_type")
    known = [
        family
        for family in FAMILIES.values()
        if ([family.architecture] == architectures if architectures else family.model_type == model_type)
    ]
    if not known:
        raise CheckpointError(
            f"{path}: architectures is {architectures!r}; this engine serves {', '.join(sorted(FAMILIES))}"
        )
    (family,) = known
    if model_type not in (None, family.model_type):
        raise CheckpointError(
            f"{path}: architectures names {family.architecture}, and model_type, by which transformers goes, "
            f"is {model_type!r}, not {family.model_type!r}; repair the checkpoint's config"
        )
    return family


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
        for key, value in {**LLAMA_DEFAULTS, **family.defaults, **raw}.items()
        if key not in unread and value is not None
    }
    heads, hidden = filled.get("num_attention_heads"), filled.get("hidden_size")
    filled.setdefault("num_key_value_heads", heads)
    if isinstance(types := filled.get("layer_types"), list):
        filled["layer_types"] = ["full_attention" if kind == "attention" else kind for kind in types]
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        filled.setdefault("head_dim", hidden // heads)
    if "use_sliding_window" in family.reads and not filled.get("use_sliding_window"):
        filled.pop("sliding_window", None)
    return filled


def layer_types(filled: Mapping[str, Any], family: Family) -> list[LayerType]:
    """Return each layer's type, from config.json or by the family's rule."""
    num_layers, listed = filled["num_hidden_layers"], filled.get("layer_types")
    if not listed:
        return [family.layer_type(filled, layer) for layer in range(num_layers)]
    if len(listed) != num_layers:
        raise ValueError(
            f"layer_types names {len(listed)}, and num_hidden_layers is {num_layers}; repair the config"
        )
    if "sliding_attention" in listed and "sliding_window" not in filled:
        raise ValueError(
            "layer_types names sliding_attention, and there is no window for it (sliding_window is null, or "
            "use_sliding_window false); give the window, or name full_attention"
        )
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
        "gate_alpha": filled["swiglu_alpha"] if sparse.clamps else None,
        "gate_limit": filled["swiglu_limit"] if sparse.clamps else None,
        "in_layer": in_layer,
    }


def end_token_ids(folder: Path, raw: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the tokens that end an answer: generation_config.json's, or config.json's if there is none.

    As in transformers' `generate`, the file alone decides: one that names no token leaves none.
    """
    path = folder / "generation_config.json"
    generation: Mapping[str, Any] | None = read_json(path)
    if generation is None:
        path, generation = folder / "config.json", raw
    value = generation.get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in listed:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
            raise CheckpointError(
                f"{path}: eos_token_id names {token_id!r}, but this model's tokens are the integers from 0 "
                f"to {vocab_size - 1} (vocab_size); take it out, or use the files of one checkpoint"
            )
    return tuple(dict.fromkeys(listed))
