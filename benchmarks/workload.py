"""The reference workload: prompts and their adapters; standard library only, for rivals to import."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Geometry:
    """A Llama of 135 million parameters, the shape of SmolLM2-135M."""

    num_layers: int = 30
    hidden_size: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 1536
    vocab_size: int = 49152
    max_positions: int = 2048


class Projected(Protocol):
    """A geometry as far as a layer's projections go."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


def projections(geometry: Projected) -> Iterator[tuple[str, int, int]]:
    """Yield (name, in_features, out_features) of one layer's projections."""
    hidden, inner = geometry.hidden_size, geometry.intermediate_size
    queries, kv = geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim
    yield "self_attn.q_proj", hidden, queries
    yield "self_attn.k_proj", hidden, kv
    yield "self_attn.v_proj", hidden, kv
    yield "self_attn.o_proj", queries, hidden
    yield "mlp.gate_proj", hidden, inner
    yield "mlp.up_proj", hidden, inner
    yield "mlp.down_proj", inner, hidden


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that all arrive at once; request i uses adapter i modulo `num_adapters`, none if that is 0."""

    num_adapters: int
    num_requests: int = 32
    prompt_len: int = 32
    num_new_tokens: int = 64
    rank: int = 16
    seed: int = 135

    @property
    def num_output_tokens(self) -> int:
        """Tokens that a system has to produce for all requests together."""
        return self.num_requests * self.num_new_tokens

    def prompts(self, round_number: int) -> list[list[int]]:
        """Return the prompts of one round; rounds differ, so that no prefix cache answers the second one."""
        draw = random.Random(f"{self.seed}/{round_number}")
        return [
            draw.choices(range(Geometry().vocab_size), k=self.prompt_len) for _ in range(self.num_requests)
        ]

    def adapter_of(self, request: int) -> int | None:
        """Return which adapter a request uses, None for the base model."""
        return request % self.num_adapters if self.num_adapters else None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values; `Workload(**values)` is the way back."""
        return asdict(self)
