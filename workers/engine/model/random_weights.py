"""Random weights in place of a checkpoint's, made on the device, to measure a geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.linear.quantized_weight import QuantizedWeight

RandomCodes = Callable[[tuple[int, ...], torch.Generator], QuantizedWeight]
"""Makes a linear module's codes: given its shape, [out_features, in_features], on the generator's device."""

_SCALE = 0.02
"""Standard deviation of matrices and biases, as models are commonly initialised."""


class RandomWeights:
    """Gives out a tensor of any name and shape, as `CheckpointReader` does; norms are ones."""

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        codes: RandomCodes | None = None,
        seed: int = 0,
    ) -> None:
        """`codes` is what linear modules are made of; None: plain weights."""
        self._dtype = dtype
        self._codes = codes
        self._generator = torch.Generator(device).manual_seed(seed)

    def has(self, name: str) -> bool:
        """Whether a tensor was promised beyond what the config implies: none is."""
        del name
        return False

    def read(self, name: str, shape: tuple[int, ...], member: tuple[int, int] | None = None) -> Tensor:
        """Return a tensor in the engine's dtype, on its device; each member of a stack is made by itself."""
        del member
        device = self._generator.device
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=device)
        made = torch.empty(shape, dtype=self._dtype, device=device)
        return made.normal_(std=_SCALE, generator=self._generator)

    def coded(self, shape: tuple[int, ...]) -> QuantizedWeight | None:
        """Return a quantised weight on the device; None if weights are plain."""
        return None if self._codes is None else self._codes(shape, self._generator)

    def place(self, name: str) -> str:
        """Say where a tensor is, for messages."""
        return f"random weights: {name!r}"

    def ignore(self, name: str) -> None:
        """Take note that a tensor is not needed."""

    def require_all_read(self) -> None:
        """Refuse nothing: there is nothing that nobody asked for."""
