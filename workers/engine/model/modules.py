"""A decoder's weights by their names in checkpoints and in PEFT, and how linear modules are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm", "lm_head.weight"
ShardAxis = Literal["column", "row", "vocabulary", "replicate"]
"""How a weight is cut between devices: by its outputs, its inputs, its tokens, or not at all."""


@dataclass(frozen=True, slots=True)
class LinearModule:
    """One linear module of a layer."""

    path: str  # below its layer, such as "self_attn.q_proj"
    in_features: int
    out_features: int
    shard: ShardAxis
    has_bias: bool = False
    sections: tuple[int, ...] = ()  # output widths of the matrices that the file holds fused in this one


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Linear modules of one input that are multiplied as one; their outputs lie side by side, in order."""

    name: str  # unique within the layer, such as "qkv", but that all experts have the same names
    parts: tuple[LinearModule, ...]
    expert: int | None = None  # whose, if the layer has experts
