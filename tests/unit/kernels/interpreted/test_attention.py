"""The Triton attention on host memory: decode, prompts and chunks in one grid, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from kernels.attention import triton_tiles
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


@pytest.mark.parametrize(
    ("chunks", "window", "dtype"),
    [
        (MIXED, None, torch.float32),
        (MIXED, 21, torch.bfloat16),
        ([(1, 700), (1, 0), (3, 130)], None, torch.float32),
        ([(1, 700), (1, 130)], 300, torch.float32),
    ],
)
def test_sinks_count_once_in_single_rows_prompts_and_merged_splits(
    chunks: list[tuple[int, int]], window: int | None, dtype: torch.dtype
) -> None:
    case = make_case(chunks, num_heads=4, num_kv_heads=2, dtype=dtype, num_padding=1)
    case.window, case.sinks = window, torch.tensor([-3.0, 0.5, 2.0, 5.0])

    compare(case)


def test_sinks_without_weight_change_no_bit_and_those_with_all_of_it_leave_nothing() -> None:
    case = make_case([(1, 0), (1, 400), (3, 20)], num_heads=4, num_kv_heads=2)
    clean = attend(case.copied()).view(-1, 4, 16)
    case.sinks = torch.tensor([-1e4, 1e4, float("nan"), float("-inf")])

    out = attend(case).view(-1, 4, 16)

    assert torch.equal(out[:, [0, 3]], clean[:, [0, 3]])
    assert (out[:, 1].abs() < 1e-30).all()
    assert out[:, 2].isnan().all()


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


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "dtype"),
    [
        (2, 2, 64, torch.bfloat16),
        (3, 1, 96, torch.float32),
        (4, 1, 128, torch.bfloat16),
        (7, 1, 64, torch.float16),
        (8, 1, 256, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("window", "softcap"), [(None, 3.0), (45, None)])
def test_groups_and_head_sizes_of_real_models_equal_plain_torch(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
) -> None:
    chunks = [(1, 140), (7, 90)]
    case = make_case(
        chunks, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype, num_padding=1
    )
    case.window, case.softcap = window, softcap

    compare(case)


@pytest.mark.parametrize(
    ("seen", "window"), [(55, None), (56, None), (57, 32), (55, 31), (56, 33), (63, 64), (57, 9)]
)
def test_tokens_are_masked_where_some_row_of_a_tile_does_not_see_them(seen: int, window: int | None) -> None:
    case = make_case([(10, seen)], num_heads=2, num_kv_heads=1)
    case.window = window

    compare(case)


def test_splits_of_long_contexts_grow() -> None:
    compare(make_case([(1, 2100)], num_heads=1, num_kv_heads=1))


def test_idle_sequences_do_not_hide_that_another_has_several_rows() -> None:
    case = make_case([(1, 150), (3, 130)], num_heads=2, num_kv_heads=1)
    case.sequence_rows = torch.cat((case.sequence_rows, torch.tensor([[4, 0, 0], [4, 0, 0]]).int()))
    case.block_tables = torch.cat((case.block_tables, torch.zeros_like(case.block_tables)))

    compare(case)


def test_one_program_or_several_attend_to_splits_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case([(1, 700), (1, 200)], num_heads=2, num_kv_heads=1)
    case.window = 500
    expected = attend(case.copied())
    monkeypatch.setattr(triton_tiles, "ENOUGH_PROGRAMS", 1)
    monkeypatch.setattr(triton_tiles, "LEAST_PROGRAMS_A_HEAD", 2)

    assert torch.equal(attend(case), expected)


def test_a_single_row_has_the_same_bits_alone_and_beside_others() -> None:
    case = make_case([(1, 300), (1, 20), (5, 60)], num_heads=2, num_kv_heads=1)
    together = attend(case.copied())

    assert torch.equal(attend(rows_of(case, 0, 1, 300)), together[:1])


@pytest.mark.parametrize("scale", [0.0, -0.125])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    case = make_case([(1, 3)])
    case.scale = scale

    with pytest.raises(ValueError, match=f"scale must be positive, not {scale}"):
        attend(case)


def test_sinks_that_are_not_one_for_each_query_head_are_refused() -> None:
    case = make_case([(1, 3)])
    case.sinks = torch.zeros(2)

    with pytest.raises(ValueError, match=r"sinks are torch.float32 \(2,\); give contiguous float32 \(6,\)"):
        attend(case)


@pytest.mark.parametrize("window", [None, 40])
def test_chunks_of_a_prompt_see_what_the_whole_sees(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply_rows_alike)
    whole = make_case([(24, 50)], num_heads=2, num_kv_heads=1)
    whole.window = window
    expected = attend(whole.copied())

    chunked = whole.copied()
    for start, end in [(0, 1), (1, 13), (13, 15), (15, 23), (23, 24)]:
        piece = rows_of(chunked, start, end, 50)
        out = attend(piece)
        chunked.keys, chunked.values = piece.keys, piece.values

        torch.testing.assert_close(out, expected[start:end], atol=1e-6, rtol=1e-6)
        # A single row is summed in splits, which rounds differently.
        assert end - start == 1 or torch.equal(out, expected[start:end])


def multiply_rows_alike(_: Any, a: Any, b: Any, d: Any, *_options: Any) -> Any:
    """Multiply as a device does, whose sums do not depend on a row's place in its tile, as numpy's do."""
    product = (a.data[:, :, None] * b.data[None, :, :]).sum(axis=1)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def rows_of(case: Case, start: int, end: int, seen: int) -> Case:
    """Return a step with some rows of the case's first sequence alone, of which `seen` tokens are cached."""
    piece = case.copied()
    piece.qkv, piece.cos, piece.sin = (part[start:end].clone() for part in (case.qkv, case.cos, case.sin))
    piece.sequence_rows = torch.tensor([[0, end - start, seen + start]], dtype=torch.int32)
    piece.block_tables = case.block_tables[:1].clone()
    return piece
