"""What an adapter must fit: the base model's name and the shapes of its linear layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.engine.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer's width in and out."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseDescription:
    """A base model as adapters see it; `name` may be empty, which means unknown."""

    name: str
    num_layers: int
    shapes: Mapping[str, ModuleShape]  # by module path as PEFT names it below base_model.model.


def describe_base(model_dir: str | Path, *, name: str | None = None) -> BaseDescription:
    """Describe a Llama-family checkpoint from its config.json alone.

    Its name is `name`, else the one config.json gives, else the folder's.
    """
    folder = Path(model_dir)
    config = _read_config(folder)
    num_layers = _positive(config, "num_hidden_layers", folder)
    per_layer = _layer_shapes(config, folder)
    shapes = {
        f"model.layers.{layer}.{module}": shape
        for layer in range(num_layers)
        for module, shape in per_layer.items()
    }
    return BaseDescription(name or _own_name(config) or base_name(folder), num_layers, shapes)


def base_name(model_dir: str | Path) -> str:
    """Return a checkpoint folder's model name; a Hugging Face cache folder gives the hub's name."""
    path = Path(model_dir).absolute()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def same_base(one: str, other: str) -> bool:
    """Tell whether two names can mean one model; folders, owners and case are set aside, empty is unknown."""
    short = [
        base_name(name.rstrip("/\\").replace("\\", "/")).rpartition("/")[2].casefold()
        for name in (one, other)
    ]
    return not one or not other or short[0] == short[1]


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file} ({error}); give a Hugging Face checkpoint folder"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); copy the checkpoint again") from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file} holds {type(config).__name__}, not an object; copy the checkpoint again"
        )
    return config


def _own_name(config: dict[str, Any]) -> str:
    name = config.get("_name_or_path")
    return name if isinstance(name, str) else ""


def _layer_shapes(config: dict[str, Any], folder: Path) -> dict[str, ModuleShape]:
    hidden = _positive(config, "hidden_size", folder)
    intermediate = _positive(config, "intermediate_size", folder)
    num_heads = _positive(config, "num_attention_heads", folder)
    num_kv_heads = _positive(
        {"num_key_value_heads": num_heads, **_set(config)}, "num_key_value_heads", folder
    )
    head_dim = _positive({"head_dim": hidden // num_heads, **_set(config)}, "head_dim", folder)
    return {
        "self_attn.q_proj": ModuleShape(hidden, num_heads * head_dim),
        "self_attn.k_proj": ModuleShape(hidden, num_kv_heads * head_dim),
        "self_attn.v_proj": ModuleShape(hidden, num_kv_heads * head_dim),
        "self_attn.o_proj": ModuleShape(num_heads * head_dim, hidden),
        "mlp.gate_proj": ModuleShape(hidden, intermediate),
        "mlp.up_proj": ModuleShape(hidden, intermediate),
        "mlp.down_proj": ModuleShape(intermediate, hidden),
    }


def _set(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _positive(config: dict[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{folder / 'config.json'}: {key} is {value!r}; it must be a positive integer")
    return value
