"""The CPU's LoRA at every level against float64: odd widths, every rank, both dtypes."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from kernels.lora.add import LoRAAdd
from kernels.lora.segments import Segments
from kernels.lora.tables import MAX_RANK, LoRAModule, LoRASlice, PackedLoRA, Slice
from tests.unit.kernels.one_module import OneModule

pytestmark = pytest.mark.numeric


def random_module(
    ranks: list[list[int | None]],  # [num_slots][num_slices]; None is a sub-module the adapter lacks
    in_features: int,
    widths: tuple[int, ...],
    dtype: torch.dtype,
) -> LoRAModule:
    generator = torch.Generator().manual_seed(1)
    adapters: list[PackedLoRA | None] = []
    bounds = list(pairwise(accumulate(widths, initial=0)))
    for slot_ranks in ranks:
        parts, stacked, first = [], [], 0
        for rank, (left, right) in zip(slot_ranks, bounds, strict=True):
            if rank is not None:
                b_t = torch.randn(rank, right - left, generator=generator) / rank**0.5
                stacked.append(torch.randn(rank, in_features, generator=generator) / in_features**0.5)
                parts.append(LoRASlice(Slice(left, right), Slice(first, first + rank), b_t.to(dtype)))
                first += rank
        adapters.append(PackedLoRA(torch.cat(stacked).to(dtype), tuple(parts)) if parts else None)
    return OneModule(in_features, widths, adapters, dtype).module


def expected_delta(x: Tensor, slots: list[int], module: LoRAModule) -> Tensor:
    delta = torch.zeros(x.shape[0], module.out_features, dtype=torch.float64)
    for row, slot in enumerate(slots):
        weights = module.weights(slot) if slot >= 0 else None
        if weights is None:
            continue
        for columns, ranks, b_t, *_ in weights.slices:
            a = weights.a[ranks.start : ranks.end].double()
            delta[row, columns.start : columns.end] = x[row].double() @ a.T @ b_t.double()
    return delta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("in_features", "widths"), [(64, (48, 16, 16)), (33, (7,)), (1, (1, 2)), (576, (101, 130)), (95, (256,))]
)
def test_behaviour_03_every_rank_equals_float64(
    in_features: int, widths: tuple[int, ...], dtype: torch.dtype, add_lora: LoRAAdd
) -> None:
    ranks = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 128]
    module = random_module([[rank] * len(widths) for rank in ranks], in_features, widths, dtype)
    slots = [slot for slot in range(len(ranks)) for _ in range(slot % 6 + 1)] + [-1, -1]
    x = torch.randn(len(slots), in_features, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = torch.randn(len(slots), sum(widths), generator=torch.Generator().manual_seed(3)).to(dtype)
    out = before.clone()

    add_lora(out, x, Segments.from_slots(slots), module)

    expected = before.double() + expected_delta(x, slots, module)
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(out[-2:], before[-2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("ranks", "in_features", "widths", "num_rows"),
    [
        pytest.param([[1], [511], [512], [257]], 2049, (33,), 17, id="odd hidden, ranks to 512"),
        pytest.param([[slot % 40 + 1] * 3 for slot in range(128)], 64, (48, 16, 16), 300, id="128 adapters"),
        pytest.param([[16, 16], [8, None], [None, 4]], 48, (32, 17), 4096, id="many rows"),
        pytest.param([[None, None], [8, 8], [None, None]], 40, (16, 24), 31, id="empty adapters"),
    ],
)
def test_behaviour_03_any_number_of_ranks_adapters_slices_and_rows_equals_float64(
    ranks: list[list[int | None]],
    in_features: int,
    widths: tuple[int, ...],
    num_rows: int,
    dtype: torch.dtype,
    add_lora: LoRAAdd,
) -> None:
    module = random_module(ranks, in_features, widths, dtype)
    slots = sorted(row % (len(ranks) + 1) - 1 for row in range(num_rows))
    x = torch.randn(num_rows, in_features, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = torch.randn(num_rows, sum(widths), generator=torch.Generator().manual_seed(3)).to(dtype)
    out = before.clone()

    add_lora(out, x, Segments.from_slots(slots), module)

    expected = before.double() + expected_delta(x, slots, module)
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_behaviour_03_base_rows_alone_keep_every_bit(dtype: torch.dtype, add_lora: LoRAAdd) -> None:
    module = random_module([[8]], 24, (16,), dtype)
    out = torch.randn(13, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = out.clone()

    add_lora(out, torch.ones(13, 24, dtype=dtype), Segments.from_slots([-1] * 13), module)

    assert torch.equal(out, before)


def test_the_largest_rank_is_served_and_a_larger_one_refused(add_lora: LoRAAdd) -> None:
    module = random_module([[MAX_RANK]], 32, (48,), torch.float32)
    x, out = torch.randn(5, 32), torch.zeros(5, 48)

    add_lora(out, x, Segments.from_slots([0] * 5), module)

    torch.testing.assert_close(out.double(), expected_delta(x, [0] * 5, module), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"for rank 1025; they must be .* the rank at most 1024"):
        random_module([[MAX_RANK + 1]], 32, (48,), torch.float32)


def test_weights_that_a_kernel_would_misread_are_refused() -> None:
    one = OneModule(8, (6,), [None, None], torch.float32)
    part = LoRASlice(Slice(0, 6), Slice(0, 4), torch.zeros(4, 6))

    with pytest.raises(ValueError, match=r"A is \(4, 7\) .* must be \[ranks, 8\]"):
        one.set(0, PackedLoRA(torch.zeros(4, 7), (part,)))
    with pytest.raises(ValueError, match="must be contiguous and of one dtype"):
        one.set(0, PackedLoRA(torch.zeros(8, 4).T, (part,)))
    with pytest.raises(ValueError, match="for rank 4; they must be"):
        one.set(0, PackedLoRA(torch.zeros(4, 8), (part._replace(num_trained=5),)))
    one.set(0, PackedLoRA(torch.zeros(4, 8), (part,)))
    halved = LoRASlice(Slice(0, 6), Slice(0, 4), torch.zeros(4, 6, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"is torch.bfloat16, but 'module' takes torch.float32"):
        one.set(1, PackedLoRA(torch.zeros(4, 8, dtype=torch.bfloat16), (halved,)))
    assert one.module.weights(1) is None
    assert not one.table.addresses[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_of_padding_change_no_bit_and_are_not_read(dtype: torch.dtype, add_lora: LoRAAdd) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b_t = torch.zeros(16, 64, dtype=dtype), torch.zeros(16, 48, dtype=dtype)
    a[:5], b_t[:5] = (torch.randn(5, n, generator=generator).to(dtype) for n in (64, 48))
    part = LoRASlice(Slice(0, 48), Slice(0, 16), b_t)
    padded, trained = (PackedLoRA(a, (one,)) for one in (part, part._replace(num_trained=5)))
    x, out = torch.randn(6, 64, generator=generator).to(dtype), torch.zeros(6, 48, dtype=dtype)
    expected = out.clone()

    add_lora(out, x, Segments.from_slots([0] * 6), OneModule(64, (48,), [trained], dtype).module)

    add_lora(expected, x, Segments.from_slots([0] * 6), OneModule(64, (48,), [padded], dtype).module)
    assert torch.equal(out, expected)
    assert OneModule(64, (48,), [trained], dtype).module.table[0, 0, 2] == 5
