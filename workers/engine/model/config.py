"""The base model's shape as its config.json gives it; what it does not honour is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workers.engine.errors import CheckpointError

_ARCHITECTURES = ("LlamaForCausalLM",)


class ModelConfig(BaseModel):
    """A Llama-family decoder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architectures: tuple[str, ...]
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_layers: int = Field(ge=1, validation_alias="num_hidden_layers")
    num_heads: int = Field(ge=1, validation_alias="num_attention_heads")
    num_kv_heads: int = Field(ge=1, validation_alias="num_key_value_heads")
    head_dim: int = Field(ge=2, multiple_of=2)
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    max_position_embeddings: int = Field(ge=1)
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    name: str | None = Field(default=None, validation_alias="_name_or_path")

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) is no multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        return self


def load_model_config(folder: Path) -> ModelConfig:
    """Read config.json and generation_config.json of a Hugging Face checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"model {str(folder)!r} is no folder; give the path of a downloaded checkpoint")
    path = folder / "config.json"
    raw = _read_json(path)
    if raw is None:
        raise CheckpointError(f"{path} is missing; give the folder of a Hugging Face checkpoint")
    _refuse_unsupported(raw, path)
    generation = _read_json(folder / "generation_config.json") or {}
    try:
        return ModelConfig.model_validate(_with_defaults(raw, generation))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_first_problem(error)}; repair the checkpoint's config") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}; download the checkpoint again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds no JSON object; download the checkpoint again")
    return raw


def _refuse_unsupported(raw: dict[str, Any], path: Path) -> None:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    served: dict[str, tuple[Any, list[Any]]] = {
        "architectures": (raw.get("architectures"), [list(_ARCHITECTURES)]),
        "hidden_act": (raw.get("hidden_act", "silu"), ["silu"]),
        "attention_bias": (raw.get("attention_bias", False), [False]),
        "mlp_bias": (raw.get("mlp_bias", False), [False]),
        "quantization_config": (raw.get("quantization_config"), [None]),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), [1.0]),
        "rope_type": (rope_type, ["default"]),
    }
    for key, (value, allowed) in served.items():
        if value not in allowed:
            raise CheckpointError(f"{path}: {key} is {value!r}; this engine serves {allowed[0]!r}")


def _with_defaults(raw: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """Fill in what older checkpoints leave to the Llama defaults, and gather the end-of-sequence ids."""
    filled = {key: value for key, value in raw.items() if value is not None}
    filled.setdefault("num_key_value_heads", raw.get("num_attention_heads"))
    if raw.get("hidden_size") and raw.get("num_attention_heads"):
        filled.setdefault("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    rope = raw.get("rope_parameters") or {}
    filled["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    filled.setdefault("rms_norm_eps", 1e-6)
    filled["eos_token_ids"] = sorted(
        {*_as_ids(raw.get("eos_token_id")), *_as_ids(generation.get("eos_token_id"))}
    )
    return filled


def _as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
