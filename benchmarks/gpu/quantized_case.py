"""Random quantised weights on the device, of the layouts that checkpoints have."""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.gpu.device import Device
from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight
from workers.engine.model.quantization.in_flight import NF4_TABLE

_SPAN_BYTES, _SPAN = 16, 32


class Coding(NamedTuple):
    """A layout: 4 bits have NF4's table, or with zeros none."""

    bits: int
    block: int  # 0: a row
    has_zeros: bool

    @property
    def bytes_per_weight(self) -> float:
        """Codes, and where blocks are not rows what belongs to each."""
        return self.bits / 8 + ((4 + self.has_zeros) / self.block if self.block else 0.0)


CODINGS = {
    "NF4": Coding(4, 64, has_zeros=False),
    "int4 g128": Coding(4, 128, has_zeros=True),
    "int8 rows": Coding(8, 0, has_zeros=True),
    "int4 g32": Coding(4, 32, has_zeros=True),
    "int8 g48": Coding(8, 48, has_zeros=True),
    "NF4, blocks of 40": Coding(4, 40, has_zeros=False),
}
TIMED = ("NF4", "int4 g128")


def make_weight(
    device: Device, generator: torch.Generator, coding: Coding, out_features: int, in_features: int
) -> QuantizedWeight:
    """Return a weight whose values are of the size of a trained one's."""
    block = coding.block or in_features
    num_blocks = -(-out_features * in_features // block)
    row_bytes = in_features if coding.bits == 8 else -(-in_features // _SPAN) * _SPAN_BYTES
    largest = 1.0 if coding.bits == 4 and not coding.has_zeros else float(1 << coding.bits - 1)

    def random_bytes(*shape: int, most: int = 256) -> torch.Tensor:
        return torch.randint(most, shape, generator=generator, device=device.name, dtype=torch.uint8)

    scales = torch.rand(num_blocks, generator=generator, device=device.name) + 0.5
    weight = QuantizedWeight(
        in_features=in_features,
        codes=random_bytes(out_features, row_bytes),
        scales=scales / (largest * in_features**0.5),
        zeros=random_bytes(num_blocks, most=1 << coding.bits) if coding.has_zeros else None,
        table=None if coding.bits == 8 else IDENTITY_TABLE if coding.has_zeros else NF4_TABLE,
        block=block,
    )
    return weight.to(device.name)
