"""The base model's shape as its config.json gives it; what it does not honour is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workers.engine.core.errors import CheckpointError
from workers.engine.core.json_files import is_there, read_json
from workers.engine.model.checkpoint import SINGLE_FILE, CheckpointReader, holds_weights
from workers.engine.model.families import FAMILIES, Family, LayerType
from workers.engine.model.modules import EMBEDDING, HEAD
from workers.engine.model.quantization import QuantizedCheckpoint, quantization_of
from workers.engine.model.raw_config import (
    end_token_ids,
    experts_of,
    family_of,
    layer_types,
    refuse_unhonoured,
    with_defaults,
)
from workers.engine.model.raw_rope import rope_of
from workers.engine.model.rope import Rope


class LayerKind(BaseModel):
    """What may differ from layer to layer in attention."""

    model_config = ConfigDict(frozen=True)

    window: int | None = Field(default=None, ge=1)  # positions a token sees, its own included; None: all
    rope: Rope
    rotates: bool = True  # False: nothing tells queries and keys where they are


class Experts(BaseModel):
    """The layers in which a router chooses among MLPs."""

    model_config = ConfigDict(frozen=True)

    num_experts: int = Field(ge=1)
    num_chosen: int = Field(ge=1)  # for each token
    width: int = Field(ge=1)  # of one expert's hidden layer
    normalizes: bool  # the chosen experts' shares are made to sum to one
    in_layer: tuple[bool, ...]  # the other layers are dense
    gate_alpha: float | None = None  # of `clamped_swiglu`, as the limit; None: the gate is plain
    gate_limit: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _enough_to_choose_from(self) -> Experts:
        if self.num_chosen > self.num_experts:
            raise ValueError(f"num_experts_per_tok is {self.num_chosen}, of {self.num_experts} experts")
        return self


class ModelConfig(BaseModel):
    """A decoder of one of the families."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: str
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_layers: int = Field(ge=1, strict=True, validation_alias="num_hidden_layers")
    num_heads: int = Field(ge=1, validation_alias="num_attention_heads")
    num_kv_heads: int = Field(ge=1, validation_alias="num_key_value_heads")
    head_dim: int = Field(ge=2, multiple_of=2)
    rms_norm_eps: float = Field(gt=0)
    layers: tuple[LayerKind, ...]
    experts: Experts | None = None
    # Strict if a family's rule computes with the value as it stands in config.json.
    sliding_window: int | None = Field(default=None, ge=1, strict=True)
    max_window_layers: int | None = Field(default=None, ge=0, strict=True)
    no_rope_layer_interval: int | None = Field(default=None, ge=1, strict=True)
    sliding_window_pattern: int | None = Field(default=None, ge=1, strict=True)
    layer_types: tuple[LayerType, ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float | None = Field(default=None, gt=0)
    attention_multiplier: float | None = Field(default=None, gt=0)
    residual_multiplier: float | None = Field(default=None, gt=0)  # of what attention and MLP add
    logits_scaling: float | None = Field(default=None, gt=0)  # what logits are divided by
    query_pre_attn_scalar: float | None = Field(default=None, gt=0)
    attn_logit_softcapping: float | None = Field(default=None, gt=0)
    final_logit_softcapping: float | None = Field(default=None, gt=0)
    tie_word_embeddings: bool = False
    quantization: QuantizedCheckpoint | None = None
    eos_token_ids: tuple[int, ...] = ()  # of the file that decides, see `end_token_ids`
    name: str | None = Field(default=None, validation_alias="_name_or_path")

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        return self

    @property
    def family(self) -> Family:
        """The architecture's entry."""
        return FAMILIES[self.architecture]

    def experts_of(self, layer: int) -> Experts | None:
        """Return what experts a layer has."""
        return self.experts if self.experts is not None and self.experts.in_layer[layer] else None

    @property
    def has_experts(self) -> bool:
        """Whether some layer has experts."""
        return self.experts is not None and any(self.experts.in_layer)

    @property
    def max_positions(self) -> int:
        """The longest sequence that every layer's positions serve."""
        return min(layer.rope.max_positions for layer in self.layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows of the layers, in the order of the first layer that has each."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def attention_scale(self) -> float:
        """What a query's product with a key is multiplied by."""
        return self.attention_multiplier or float(self.query_pre_attn_scalar or self.head_dim) ** -0.5


def load_model_config(folder: Path) -> ModelConfig:
    """Read what a Hugging Face checkpoint's files say of it; `docs/checkpoints.md` tells which decides."""
    if not folder.is_dir():
        raise CheckpointError(
            f"model {str(folder)!r} is not a folder; give the path of a downloaded checkpoint"
        )
    path = folder / "config.json"
    raw = read_json(path)
    if raw is None:
        raise CheckpointError(f"{path} is missing; give the folder of a Hugging Face checkpoint")
    _refuse_other_weights(folder, raw)
    family = family_of(raw, path)
    refuse_unhonoured(raw, family, path)
    filled = with_defaults(raw, family)
    filled["quantization"] = quantization_of(raw, path)
    config = _validated(filled, family, path)
    return config.model_copy(
        update={
            "eos_token_ids": end_token_ids(folder, raw, config.vocab_size),
            "tie_word_embeddings": config.tie_word_embeddings and not _has_own_head(folder),
        }
    )


def _refuse_other_weights(folder: Path, raw: dict[str, Any]) -> None:
    if is_there(folder / "adapter_config.json"):
        raise CheckpointError(
            f"{folder} holds adapter_config.json beside config.json: transformers would load that adapter on "
            "top of these weights, and an adapter that was merged is in them already; remove its files, or "
            "move them to a folder of their own and send it with requests"
        )
    if (named := raw.get("transformers_weights")) not in (None, SINGLE_FILE):
        raise CheckpointError(
            f"{folder / 'config.json'}: transformers_weights is {named!r}, which transformers reads, and "
            f"this engine reads {SINGLE_FILE} or its index; rename the file and leave the key out"
        )


def _has_own_head(folder: Path) -> bool:
    """Whether there is a head beside the embedding, and another one: transformers then ties nothing."""
    if not holds_weights(folder):
        return False
    with CheckpointReader(folder, torch.float32) as reader:
        return reader.has(EMBEDDING) and reader.has(HEAD) and not reader.are_equal(EMBEDDING, HEAD)


def _validated(filled: dict[str, Any], family: Family, path: Path) -> ModelConfig:
    try:
        # Without layers at first: what their rules compute with must be sound.
        shape = ModelConfig.model_validate(filled | {"architecture": family.architecture, "layers": ()})
        given = experts_of(filled, family)
        experts = None if given is None else Experts.model_validate(given)
        rotates = [family.rotates(filled, layer) for layer in range(shape.num_layers)]
        types = list(zip(layer_types(filled, family), rotates, strict=True))
        kinds = {
            (kind, rotated): LayerKind(
                window=shape.sliding_window if kind == "sliding_attention" else None,
                rope=Rope.model_validate(rope_of(filled, kind, family)),
                rotates=rotated,
            )
            for kind, rotated in dict.fromkeys(types)
        }
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_first_problem(error)}; repair the checkpoint's config") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]} is null; give its value, or leave it out") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    layers = tuple(kinds[kind] for kind in types)
    return shape.model_copy(update={"layers": layers, "experts": experts})


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
