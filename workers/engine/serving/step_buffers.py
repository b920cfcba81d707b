"""Steps on their way to a device or another process: packed in one host buffer, sent with one copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.core.step_input import ForwardInput, SamplingInput, StepHalf
from workers.engine.core.tensor_pack import TensorPack, unpack

_NUM_BUFFERS = 2
"""Half a step may still be on its way while the next step's is packed, never that of the step after."""
_SMALLEST_BYTES = 1 << 16


class PackedStep(NamedTuple):
    """Half a step as bytes: the skeleton says what the buffer holds."""

    skeleton: bytes
    buffer: Tensor  # [num_bytes] uint8, valid until the step after the next is packed

    def unpack(self) -> StepHalf:
        """Return what was packed; its tensors are views on the buffer."""
        half = unpack(self.skeleton, self.buffer)
        assert isinstance(half, ForwardInput | SamplingInput), f"a {type(half).__name__} was sent for a step"
        return half

    def to(self, buffer: Tensor) -> PackedStep:
        """Copy to the start of a buffer elsewhere, without waiting if both sides allow it."""
        target = buffer[: self.buffer.numel()]
        target.copy_(self.buffer, non_blocking=True)
        return PackedStep(self.skeleton, target)


class HostBuffers:
    """Two host buffers used in turn, pinned for a CUDA device; they grow to the largest demand."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * _NUM_BUFFERS
        self._next = 0

    def turn(self, num_bytes: int) -> Tensor:
        """Return the beginning of the buffer that was used longer ago, [num_bytes] uint8."""
        turn, self._next = self._next, (self._next + 1) % _NUM_BUFFERS
        if self._buffers[turn].numel() < num_bytes:
            self._buffers[turn] = torch.empty(_grown(num_bytes), dtype=torch.uint8, pin_memory=self._pinned)
        return self._buffers[turn][:num_bytes]


class DeviceBuffer:
    """One buffer on a device that grows to the largest demand."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def bytes(self, num_bytes: int) -> Tensor:
        """Return its beginning, [num_bytes] uint8, whatever it held."""
        if self._buffer.numel() < num_bytes:
            self._buffer = torch.empty(_grown(num_bytes), dtype=torch.uint8, device=self._buffer.device)
        return self._buffer[:num_bytes]


class StepBuffers:
    """Host buffers of one kind of half; the two halves of a step have buffers of their own."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._buffers = HostBuffers(pinned=pinned)

    def pack(self, half: StepHalf) -> PackedStep:
        """Copy the tensors of half a step into the buffer that was used longer ago."""
        pack = TensorPack(half)
        buffer = self._buffers.turn(pack.num_bytes)
        pack.write(buffer)
        return PackedStep(pack.skeleton, buffer)


def _grown(num_bytes: int) -> int:
    return max(_SMALLEST_BYTES, 1 << max(0, num_bytes - 1).bit_length())
