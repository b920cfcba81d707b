"""Random weights in place of a checkpoint's, made on the device, to measure a geometry."""

from __future__ import annotations

import torch
from torch import Tensor

_SCALE = 0.02
"""Standard deviation of matrices and biases, as models are commonly initialised."""


class RandomWeights:
    """Gives out a tensor of any name and shape, as `CheckpointReader` does; norms are ones."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu", *, seed: int = 0) -> None:
        self._dtype = dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def has(self, name: str) -> bool:
        """Whether a tensor was promised beyond what the config implies: none is."""
        del name
        return False

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor in the engine's dtype, on its device."""
        device = self._generator.device
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=device)
        made = torch.empty(shape, dtype=self._dtype, device=device)
        return made.normal_(std=_SCALE, generator=self._generator)

    def read_float(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor in host memory."""
        return self.read(name, shape).cpu()

    def place(self, name: str) -> str:
        """Say where a tensor is, for messages."""
        return f"random weights: {name!r}"

    def ignore(self, name: str) -> None:
        """Take note that a tensor is not needed."""

    def require_all_read(self) -> None:
        """Refuse nothing: there is nothing that nobody asked for."""
