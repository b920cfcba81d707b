"""Rotary frequencies and their scalings, as transformers' `modeling_rope_utils` computes them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]
_NEEDED: dict[RopeType, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor",),
}


class Rope(BaseModel):
    """How positions become angles: `rope_parameters` of config.json, with what it needs around it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head_dim: int = Field(ge=2)
    max_position_embeddings: int = Field(ge=1)
    original_max_position_embeddings: int = Field(ge=1)
    rope_type: RopeType = "default"
    rope_theta: float = Field(gt=0)
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)
    factor: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float | None = Field(default=None, gt=0)
    high_freq_factor: float | None = Field(default=None, gt=0)
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Rope:
        for key in _NEEDED[self.rope_type]:
            if getattr(self, key) is None:
                raise ValueError(f"rope_type {self.rope_type!r} needs {key}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"{self.rotary_dim} columns of a head would be rotated; it must be an even number"
            )
        if self.rope_type == "longrope" and len(self.short_factor or ()) != self.rotary_dim // 2:
            raise ValueError(
                f"short_factor has {len(self.short_factor or ())} numbers, not {self.rotary_dim // 2}"
            )
        return self

    @property
    def rotary_dim(self) -> int:
        """How many columns of a head are rotated, from its first."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def max_positions(self) -> int:
        """The longest sequence whose angles are defined."""
        if self.rope_type in ("linear", "dynamic"):
            return int(self.max_position_embeddings * self._factor)
        if self.rope_type == "yarn":
            extended = int(self.original_max_position_embeddings * self._factor)
            return max(self.max_position_embeddings, extended)
        if self.rope_type == "longrope":
            # Beyond it the whole sequence would be rotated anew with the long factors, cached keys included.
            return min(self.original_max_position_embeddings, self.max_position_embeddings)
        return self.max_position_embeddings

    @property
    def attention_scaling(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.rope_type not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.rope_type == "longrope":
            ratio = self.factor or self.max_position_embeddings / self.original_max_position_embeddings
            growth = math.log(ratio) / math.log(self.original_max_position_embeddings)
            return 1.0 if ratio <= 1 else math.sqrt(1 + growth)
        if self.mscale and self.mscale_all_dim:
            return _mscale(self._factor, self.mscale) / _mscale(self._factor, self.mscale_all_dim)
        return _mscale(self._factor, 1.0)

    @property
    def _factor(self) -> float:
        return 1.0 if self.factor is None else self.factor

    def angles(self, num_positions: int) -> Tensor:  # [num_positions, rotary_dim / 2] float32
        """Return the angle of every rotated pair of columns at every position."""
        positions = torch.arange(num_positions).float()
        if self.rope_type == "dynamic":
            return positions[:, None] * self._dynamic_frequencies(positions)
        return torch.outer(positions, self._frequencies())

    def _frequencies(self) -> Tensor:  # [rotary_dim / 2] float32
        plain = 1.0 / self.rope_theta ** self._exponents()
        if self.rope_type == "linear":
            return plain / self._factor
        if self.rope_type == "llama3":
            return self._llama3_frequencies(plain)
        if self.rope_type == "yarn":
            return self._yarn_frequencies(plain)
        if self.rope_type == "longrope":
            return plain / torch.tensor(self.short_factor)
        return plain

    def _exponents(self) -> Tensor:
        return torch.arange(0, self.rotary_dim, 2, dtype=torch.int64).float() / self.rotary_dim

    def _dynamic_frequencies(
        self,
        positions: Tensor,  # [num_positions]
    ) -> Tensor:  # [num_positions, rotary_dim / 2]
        """Return frequencies for a sequence that ends at each position, as generation meets them.

        A function of the position alone: neither neighbours nor chunks nor a shared prefix change it. With
        transformers it is the same wherever the prompt is within max_position_embeddings.
        """
        lengths = torch.clamp(positions + 1, min=self.max_position_embeddings)
        growth = self._factor * lengths / self.max_position_embeddings - (self._factor - 1)
        bases = self.rope_theta * growth ** (self.rotary_dim / (self.rotary_dim - 2))
        return 1.0 / bases[:, None] ** self._exponents()

    def _llama3_frequencies(self, plain: Tensor) -> Tensor:
        assert self.low_freq_factor is not None
        assert self.high_freq_factor is not None
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)  # within the original context
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return (1 - smooth) * plain / self._factor + smooth * plain

    def _yarn_frequencies(self, plain: Tensor) -> Tensor:
        low, high = self._yarn_place(self.beta_fast or 32), self._yarn_place(self.beta_slow or 1)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        width = high - low or 0.001
        ramp = ((torch.arange(self.rotary_dim // 2).float() - low) / width).clamp(0, 1)
        return plain / self._factor * ramp + plain * (1 - ramp)

    def _yarn_place(self, num_turns: float) -> float:
        """Return the column whose pair turns that often within the original context."""
        wavelength = self.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return self.rotary_dim * math.log(wavelength) / (2 * math.log(self.rope_theta))


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
