"""Random quantised weights of every layout the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight, pack_codes


def random_weight(
    out_features: int, in_features: int, *, bits: int, block: int, seed: int = 1, table: Tensor | None = None
) -> QuantizedWeight:
    """A weight with zeros, and with its columns in order; its values are of the size of a trained one's."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (out_features, in_features), generator=generator, dtype=torch.uint8)
    num_blocks = -(-out_features * in_features // block)
    return QuantizedWeight(
        in_features=in_features,
        codes=pack_codes(codes) if bits == 4 else codes,
        scales=(torch.rand(num_blocks, generator=generator) + 0.5) / (in_features**0.5 * (1 << bits)),
        zeros=torch.randint(0, 1 << bits, (num_blocks,), generator=generator, dtype=torch.uint8),
        table=None if bits == 8 else IDENTITY_TABLE if table is None else table,
        block=block,
    )
