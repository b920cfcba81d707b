"""Loads linear modules: plain, quantised as the checkpoint has them, or quantised on the way in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear.linear import Linear
from kernels.linear.quantized_linear import AnyLinear, QuantizedLinear
from kernels.linear.quantized_weight import QuantizedWeight, joined
from kernels.registry import Kernels
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.modules import LinearModule, PackedLinear
from workers.engine.model.quantization import Quantize, QuantizedCheckpoint
from workers.engine.model.random_weights import RandomWeights


@dataclass(frozen=True, slots=True)
class LinearLoader:
    """Knows what to make of a linear module's tensors, and in what form to keep them."""

    reader: CheckpointReader | RandomWeights
    dtype: torch.dtype
    device: torch.device | str
    checkpoint: QuantizedCheckpoint | None  # how the file is quantised
    in_flight: Quantize | None  # what plain weights go through
    keep: bool  # quantised weights stay so; else they are dequantised into `dtype`
    kernels: Kernels

    def load(self, prefix: str, packed: PackedLinear) -> AnyLinear:
        """Return a packed module; it is kept quantised only if every part is quantised."""
        weights = [self._weight(f"{prefix}.{part.path}", part) for part in packed.parts]
        bias = self._bias(prefix, packed)
        quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
        multiply = self.kernels.quantized_linear
        if self.keep and multiply is not None and len(quantized) == len(weights):
            return QuantizedLinear(self._placed(quantized), bias, multiply=multiply)
        return Linear(_stacked([self._dense(weight) for weight in weights]), bias, kernel=self.kernels.linear)

    def _placed(self, parts: list[QuantizedWeight]) -> Sequence[QuantizedWeight]:
        """Return weights on the device; a GPU gets as few as can be, for each is a launch of its own."""
        if self.kernels.level != "triton":
            return parts
        return joined([part.to(self.device) for part in parts])

    def _weight(self, path: str, part: LinearModule) -> QuantizedWeight | Tensor:
        shape = (part.out_features, part.in_features)
        if isinstance(self.reader, RandomWeights):
            coded = None if part.shard == "replicate" else self.reader.coded(shape)
            return self.reader.read(f"{path}.weight", shape) if coded is None else coded
        if self.checkpoint is not None:
            weight = self.checkpoint.read_weight(self.reader, path, *shape)
            return self.reader.read(f"{path}.weight", shape) if weight is None else weight
        # Routers stay plain: they are small, and rounded they would choose other experts.
        if self.in_flight is not None and part.shard != "replicate":
            # As the file has it: rounded to the engine's dtype first, it would be quantised twice.
            return self.in_flight(self.reader.read_float(f"{path}.weight", shape))
        return self.reader.read(f"{path}.weight", shape)

    def _dense(self, weight: QuantizedWeight | Tensor) -> Tensor:
        if isinstance(weight, QuantizedWeight):
            return weight.dense().to(device=self.device, dtype=self.dtype)
        return weight

    def _bias(self, prefix: str, packed: PackedLinear) -> Tensor | None:
        biases = []
        for part in packed.parts:
            name = f"{prefix}.{part.path}.bias"
            if part.has_bias:
                biases.append(self.reader.read(name, (part.out_features,)))
            elif self.checkpoint is not None and self.reader.has(name):
                self._refuse_unless_zero(name, part.out_features)
        return _stacked(biases) if biases else None

    def _refuse_unless_zero(self, name: str, width: int) -> None:
        """AutoGPTQ writes biases for modules that have none, all of them zero."""
        if self.reader.read(name, (width,)).any():
            raise CheckpointError(
                f"{self.reader.place(name)} is not zero, and this architecture has no such bias; "
                "use the config and the weights of the same checkpoint"
            )


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
