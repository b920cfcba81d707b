"""The oracle of NF4 and FP4 is what bitsandbytes computes, wherever bitsandbytes computes what it says."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb

from tests.unit.workers.engine.four_bits import TABLES, Quantized, dequantized, quantized

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("kind", TABLES)
def test_the_tables_are_those_of_bitsandbytes(kind: str) -> None:
    assert torch.equal(TABLES[kind], bnb.get_4bit_type(kind, device="cpu"))


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shape", [(4, 64), (5, 192), (64, 144), (3, 34)])
@pytest.mark.parametrize("kind", TABLES)
def test_bitsandbytes_gives_the_same_codes_to_every_width(
    kind: str, shape: tuple[int, int], block: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))

    packed, state = bnb.quantize_4bit(weight, blocksize=block, quant_type=kind)

    ours = quantized(weight, kind, block)
    theirs = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().long()
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(TABLES[kind][ours.codes], TABLES[kind][theirs])  # FP4 has a zero of either sign


@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("shape", [(4, 64), (5, 192), (64, 128)])
@pytest.mark.parametrize("kind", TABLES)
def test_bitsandbytes_gives_the_same_values_to_widths_that_are_multiples_of_64(
    kind: str, shape: tuple[int, int], is_double: bool
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    packed, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=is_double)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().long()
    absmax = state.absmax
    if is_double:
        nested = state.state2
        absmax = nested.code[absmax.long()] * nested.absmax.repeat_interleave(256)[: absmax.numel()]
        absmax = absmax + state.offset

    values = dequantized(Quantized(codes, absmax), kind, shape)

    assert torch.equal(values, bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("kind", TABLES)
def test_no_weight_is_further_from_its_value_than_half_the_widest_gap(kind: str) -> None:
    weight = torch.randn(7, 144, generator=torch.Generator().manual_seed(5))

    coded = quantized(weight, kind)

    largest = coded.absmax[torch.arange(weight.numel()) // 64].view(weight.shape)
    widest = TABLES[kind].sort().values.diff().max()
    error = (dequantized(coded, kind, tuple(weight.shape)) - weight).abs()
    assert (error <= 0.5001 * widest * largest).all()
