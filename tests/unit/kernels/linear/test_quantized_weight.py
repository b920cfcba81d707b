from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.linear.quantized_weight import IDENTITY_TABLE, QuantizedWeight, joined, pack_codes
from tests.unit.kernels.random_codes import random_weight


@pytest.mark.parametrize("num_columns", [1, 16, 31, 32, 33, 80])
def test_four_bit_codes_come_back_from_their_bytes(num_columns: int) -> None:
    codes = torch.randint(0, 16, (5, num_columns), dtype=torch.uint8)
    ones = torch.ones(-(-codes.numel() // 16))

    weight = QuantizedWeight(num_columns, pack_codes(codes), ones, None, IDENTITY_TABLE, 16)

    assert weight.codes.shape == (5, -(-num_columns // 32) * 16)
    assert torch.equal(weight.dense(), codes.float())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_is_its_code_less_the_zero_times_the_scale_of_its_block(bits: int) -> None:
    weight = random_weight(3, 24, bits=bits, block=36)  # the blocks run from row to row

    dense = weight.dense().flatten()

    plain = replace(weight, scales=torch.ones(2), zeros=None).dense().flatten()
    for position in range(72):
        block = position // 36
        zero = weight.zeros[block].float()  # type: ignore[index]
        assert dense[position] == (plain[position] - zero) * weight.scales[block]


def test_a_table_gives_the_codes_their_values() -> None:
    table = torch.linspace(-1, 1, 16)
    codes = torch.arange(16, dtype=torch.uint8).view(1, 16)

    weight = QuantizedWeight(16, pack_codes(codes), torch.tensor([2.0]), None, table, 16)

    assert torch.equal(weight.dense(), 2 * table.view(1, 16))


def test_columns_stand_where_their_order_says() -> None:
    weight = random_weight(4, 32, bits=4, block=16)
    order = torch.randperm(32, dtype=torch.int32)

    turned = replace(weight, columns=order).dense()

    assert torch.equal(turned[:, order], weight.dense())


@pytest.mark.parametrize(("bits", "block", "per_weight"), [(4, 64, 0.5 + 5 / 64), (8, 128, 1.0 + 5 / 128)])
def test_the_bytes_held_are_codes_scales_and_zeros(bits: int, block: int, per_weight: float) -> None:
    weight = random_weight(256, 512, bits=bits, block=block)

    assert weight.nbytes == pytest.approx(256 * 512 * per_weight, rel=0.01)


def test_neighbours_that_one_weight_can_be_are_joined_and_the_others_stay_apart() -> None:
    order = torch.randperm(32, dtype=torch.int32)
    parts = [random_weight(rows, 32, bits=4, block=16, seed=rows) for rows in (3, 5, 2, 4)]
    parts[2:] = [replace(part, columns=order.clone()) for part in parts[2:]]
    others = [
        random_weight(2, 32, bits=8, block=16),
        random_weight(2, 32, bits=4, block=8),
        random_weight(2, 32, bits=4, block=8, table=torch.linspace(-1, 1, 16)),
        replace(random_weight(2, 32, bits=4, block=8), zeros=None),
        random_weight(1, 32, bits=4, block=24),  # ends within a block
        random_weight(1, 32, bits=4, block=24),
    ]

    stacked = joined([*parts, *others])

    assert [one.out_features for one in stacked] == [8, 6, 2, 2, 2, 2, 1, 1]
    assert torch.equal(
        torch.cat([one.dense() for one in stacked]), torch.cat([one.dense() for one in [*parts, *others]])
    )


def test_on_another_device_the_codes_own_values_are_still_known_as_such() -> None:
    weight = random_weight(4, 32, bits=4, block=16)
    other = random_weight(4, 32, bits=4, block=16, table=torch.linspace(-1, 1, 16))

    moved, unlike = weight.to("meta"), other.to("meta")

    assert moved.codes.device.type == moved.scales.device.type == "meta"
    assert moved.is_identity
    assert not unlike.is_identity
    assert moved.nbytes == weight.nbytes
    assert weight.to("meta").table is moved.table
