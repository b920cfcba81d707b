"""Loads linear modules: plain, quantised as the checkpoint has them, or quantised on the way in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear.linear import Linear
from kernels.linear.quantized_linear import AnyLinear, QuantizedLinear
from kernels.linear.quantized_weight import QuantizedWeight, joined
from kernels.registry import Kernels
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader, Member
from workers.engine.model.modules import LinearModule, PackedLinear, tensor_names
from workers.engine.model.quantization import Mxfp4Checkpoint, Quantize, QuantizedCheckpoint
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
        weights = [self._weight(prefix, packed, part) for part in packed.parts]
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

    def _weight(self, prefix: str, packed: PackedLinear, part: LinearModule) -> QuantizedWeight | Tensor:
        name, _ = tensor_names(prefix, packed, part)
        quantized = self._quantized(name, f"{prefix}.{part.path}", packed, part)
        if quantized is not None:
            return quantized
        reader, quantize = self.reader, None if self.checkpoint is not None else self.in_flight
        # Routers stay plain: they are small, and rounded they would choose other experts.
        if quantize is not None and part.shard != "replicate" and isinstance(reader, CheckpointReader):
            # As the file has it: rounded to the engine's dtype first, it would be quantised twice.
            return quantize(self._plain(reader.read_float, name, packed, part))
        return self._plain(reader.read, name, packed, part)

    def _quantized(
        self, name: str, path: str, packed: PackedLinear, part: LinearModule
    ) -> QuantizedWeight | None:
        """Return what the checkpoint, or who makes weights in its place, has quantised."""
        shape, checkpoint = (part.out_features, part.in_features), self.checkpoint
        of_experts = checkpoint if isinstance(checkpoint, Mxfp4Checkpoint) else None
        if isinstance(self.reader, RandomWeights):
            is_plain = part.shard == "replicate" or (of_experts is not None and not packed.stack)
            return None if is_plain else self.reader.coded(shape)
        if packed.stack:  # which the other methods leave plain: they know modules
            member = _member(packed)
            return None if of_experts is None else of_experts.read_member(self.reader, name, member, *shape)
        return None if checkpoint is None else checkpoint.read_weight(self.reader, path, *shape)

    def _plain(
        self, read: Callable[..., Tensor], name: str, packed: PackedLinear, part: LinearModule
    ) -> Tensor:  # [out_features, in_features]
        if not packed.stack:
            return read(name, (part.out_features, part.in_features))
        return read(name, (part.in_features, part.out_features), _member(packed)).t().contiguous()

    def _dense(self, weight: QuantizedWeight | Tensor) -> Tensor:
        if isinstance(weight, QuantizedWeight):
            return weight.dense().to(device=self.device, dtype=self.dtype)
        return weight

    def _bias(self, prefix: str, packed: PackedLinear) -> Tensor | None:
        biases = []
        for part in packed.parts:
            _, name = tensor_names(prefix, packed, part)
            if part.has_bias:
                biases.append(self.reader.read(name, (part.out_features,), _member(packed)))
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


def _member(packed: PackedLinear) -> Member | None:
    return (packed.expert, packed.num_experts) if packed.stack and packed.expert is not None else None


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
