"""A decoder's weights by their names in checkpoints and in PEFT, and how linear modules are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm", "lm_head.weight"
SINKS = "self_attn.sinks"
"""Below its layer."""

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
    parameter: str = ""  # below its layer: what the base has in the place of such a module


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """Linear modules of one input that are multiplied as one; their outputs lie side by side, in order."""

    name: str  # unique within the layer, such as "qkv", but that all experts have the same names
    parts: tuple[LinearModule, ...]
    expert: int | None = None  # whose, if the layer has experts
    num_experts: int = 0  # of the layer

    @property
    def stack(self) -> str:
        """The parameter that has every expert's matrix, [num_experts, in, out]; empty if there is none."""
        return "" if self.expert is None else self.parts[0].parameter


def tensor_names(prefix: str, packed: PackedLinear, part: LinearModule) -> tuple[str, str]:
    """Return the names of the tensors that have a module's weight and its bias."""
    path = f"{prefix}.{packed.stack or part.path}"
    return (path, f"{path}_bias") if packed.stack else (f"{path}.weight", f"{path}.bias")
