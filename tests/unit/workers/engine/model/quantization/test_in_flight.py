from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb

from tests.unit.workers.engine.four_bits import dequantized, quantized
from workers.engine.model.quantization.in_flight import quantize_int8, quantize_nf4

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 64), (5, 96), (64, 144), (3, 33)])
def test_nf4_is_what_bitsandbytes_makes_of_it(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    packed, state = bnb.quantize_4bit(weight.float(), quant_type="nf4")

    ours = quantize_nf4(weight)

    expected = quantized(weight, "nf4")
    assert torch.equal(ours.scales, expected.absmax)
    assert torch.equal(ours.dense(), dequantized(expected, "nf4", shape))
    assert torch.equal(ours.scales, state.absmax)
    if shape[1] % 64 == 0:  # bitsandbytes' own kernel errs on other widths with AVX512
        assert torch.equal(ours.dense(), bnb.dequantize_4bit(packed, state))


def test_int8_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(40, 64)

    error = (quantize_int8(weight).dense() - weight).abs()

    assert (error <= 0.5001 * weight.abs().amax(dim=1, keepdim=True) / 127).all()


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_nf4])
def test_zeros_stay_zeros(quantize: object) -> None:
    assert callable(quantize)

    assert torch.equal(quantize(torch.zeros(4, 64)).dense(), torch.zeros(4, 64))
