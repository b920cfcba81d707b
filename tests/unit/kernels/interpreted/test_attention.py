"""The Triton attention on host memory: decode, prompts and chunks in one grid, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.attention import triton_paged_attention
from kernels.attention.paged_attention import HeadNorms
from kernels.registry import resolve
from tests.unit.kernels.attention_cases import Case, make_case

TOLERANCES = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
MIXED = [(1, 0), (1, 47), (5, 0), (3, 30)]


def attend(case: Case) -> Tensor:
    return case.run(resolve("paged_attention", "cpu", case.qkv.dtype, "triton"))


def compare(case: Case) -> None:
    reference, tolerance = case.copied(), TOLERANCES[case.qkv.dtype]
    expected = reference.run_reference()

    out = attend(case)

    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(case.keys, reference.keys, atol=tolerance, rtol=tolerance)
    assert torch.equal(case.values, reference.values)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(6, 2, 16, 16), (3, 1, 64, 16), (2, 2, 80, 32), (5, 1, 10, 64)],
)
def test_mixed_steps_equal_plain_torch(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    case = make_case(
        MIXED,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        num_padding=2,
    )

    compare(case)


@pytest.mark.parametrize("window", [None, 1, 21])
@pytest.mark.parametrize(("head_dim", "rotary_dim", "softcap"), [(32, 20, 3.0), (256, 64, None)])
def test_windows_softcaps_head_norms_and_partial_rotation_equal_plain_torch(
    window: int | None, head_dim: int, rotary_dim: int, softcap: float | None
) -> None:
    case = make_case(MIXED, num_heads=2, num_kv_heads=1, head_dim=head_dim, rotary_dim=rotary_dim)
    case.window, case.softcap = window, softcap
    case.head_norms = HeadNorms(torch.linspace(0.2, 2, head_dim), torch.linspace(2, 0.2, head_dim), 1e-6)

    compare(case)


@pytest.mark.parametrize("window", [None, 60, 300])
@pytest.mark.parametrize("chunks", [[(1, 1100), (1, 511), (1, 512), (1, 0)], [(9, 508), (1, 1030), (3, 0)]])
def test_contexts_of_several_splits_are_merged(chunks: list[tuple[int, int]], window: int | None) -> None:
    case = make_case(chunks, num_heads=2, num_kv_heads=1, num_padding=1)
    case.window = window

    compare(case)


def test_a_group_as_large_as_a_tile_has_a_tile_a_row() -> None:
    compare(make_case([(1, 3), (1, 20)], num_heads=16, num_kv_heads=1))
    compare(make_case([(2, 3)], num_heads=64, num_kv_heads=1))


def test_rows_of_no_sequence_are_zero() -> None:
    case = make_case(MIXED, num_padding=3)

    assert torch.equal(attend(case)[-3:], torch.zeros(3, 96))


def test_nothing_is_read_that_no_row_sees() -> None:
    case = make_case([(1, 150), (4, 120)], num_heads=2, num_kv_heads=1)
    case.window = 32
    clean = attend(case.copied())
    for table, seen in zip(case.block_tables.long(), (119, 89), strict=True):
        hidden = table[: seen // 16]
        case.keys[hidden] = case.values[hidden] = float("nan")
    case.keys[0] = case.values[0] = float("nan")  # what fills tables up

    assert torch.equal(attend(case), clean)


def test_nan_in_one_sequence_reaches_no_other() -> None:
    case = make_case([(1, 40), (1, 40), (6, 0), (6, 10)], num_heads=2, num_kv_heads=1)
    clean = attend(case.copied())
    case.values[case.block_tables[1].long()] = float("nan")
    case.qkv[4] = float("nan")

    out = attend(case)

    assert out[1].isnan().all()
    assert out[4:8].isnan().all()
    others = [0, *range(8, 14)]
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("window", [None, 40])
def test_chunks_of_a_prompt_see_what_the_whole_sees(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_paged_attention, "SPLIT_TOKENS", 64)
    whole = make_case([(24, 50)], num_heads=2, num_kv_heads=1)
    whole.window = window
    expected = attend(whole.copied())

    pieces, chunked = [], whole.copied()
    for start, end in [(0, 1), (1, 13), (13, 15), (15, 23), (23, 24)]:
        chunked.qkv, chunked.cos, chunked.sin = (
            part[start:end].clone() for part in (whole.qkv, whole.cos, whole.sin)
        )
        chunked.sequence_rows = torch.tensor([[0, end - start, 50 + start]], dtype=torch.int32)
        pieces.append(attend(chunked))

    # Here numpy multiplies, whose sums depend on a tile's shape; a device's do not.
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-6, rtol=1e-6)
