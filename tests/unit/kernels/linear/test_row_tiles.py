"""Tiles of rows give a row one product, whatever a library makes of the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.linear.linear import Linear, linear_reference
from kernels.linear.row_tiles import RowTiles, cut, linear_in_tiles, logits_in_tiles
from tests.emulated.products import halved
from tests.unit.products import random

pytestmark = pytest.mark.numeric
SIZES = (4, 8, 16, 32, 64, 256)


def by_place(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply with a rounding of its own at every place."""
    out = F.linear(x, weight, bias)
    return out + torch.arange(len(x)).unsqueeze(1) * 1e-6


@pytest.mark.parametrize(
    ("sizes", "num_rows", "tiles"),
    [
        (SIZES, 1, [(0, 4)]),
        (SIZES, 9, [(0, 16)]),
        (SIZES, 33, [(0, 32), (32, 4)]),
        (SIZES, 330, [(0, 256), (256, 64), (320, 16)]),
        ((16,), 33, [(0, 16), (16, 16), (32, 16)]),
        ((1,), 3, [(0, 1), (1, 1), (2, 1)]),
        (SIZES, 0, []),
    ],
)
def test_rows_are_cut_into_few_tiles(
    sizes: tuple[int, ...], num_rows: int, tiles: list[tuple[int, int]]
) -> None:
    assert list(cut(num_rows, sizes)) == tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (259, 33), (1500, 48), (960, 576)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_has_its_bits_in_every_batch_and_the_product_is_right(
    shape: tuple[int, int], dtype: torch.dtype, has_bias: bool
) -> None:
    weight, x = random(*shape).to(dtype), random(200, shape[1]).to(dtype)
    bias = random(shape[0]).to(dtype) if has_bias else None
    multiply = Linear(weight, bias, kernel=linear_in_tiles(dtype))

    whole = multiply(x)

    for num_rows in (*range(1, 20), 31, 32, 33, 63, 64, 65, 100, 130):
        for start in (0, 3, 200 - num_rows):
            assert torch.equal(multiply(x[start : start + num_rows]), whole[start : start + num_rows])
    expected = linear_reference(x.float(), weight.float(), None if bias is None else bias.float())
    torch.testing.assert_close(whole, expected.to(dtype), atol=2e-4, rtol=1e-2)


def test_other_sizes_are_used_only_if_they_give_the_same_bits() -> None:
    weight, x = random(64, 48), random(100, 48)
    like_amx = RowTiles(halved, lambda weight: weight)

    whole = like_amx(x, weight, None)

    assert like_amx.sizes(weight, x.dtype, None) == (16, 32, 64, 256)
    assert all(torch.equal(like_amx(x[:n], weight, None), whole[:n]) for n in range(1, 100, 7))


def test_rows_are_multiplied_one_by_one_if_places_in_a_tile_differ() -> None:
    weight, x = torch.zeros(64, 48), random(20, 48)  # of zeros a trial would show nothing
    tiles = RowTiles(by_place, lambda weight: weight)

    assert tiles.sizes(weight, x.dtype, None) == (1,)
    assert torch.equal(tiles(x, random(64, 48), None)[3:4], tiles(x[3:4], random(64, 48), None))


def test_a_head_multiplies_in_float32() -> None:
    kernel = logits_in_tiles()
    x, weight = random(5, 32).bfloat16(), random(40, 32)

    logits = kernel.multiply(x, weight)

    assert (logits.dtype, kernel.weight_dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(logits, F.linear(x.float(), weight), atol=1e-4, rtol=0)
