"""Attention in place against plain torch: prefill, decode and chunks mixed, long contexts, odd heads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.attention.paged_attention import (
    HeadNorms,
    PagedAttention,
)
from kernels.cpu.library import LEVELS, Level
from kernels.registry import build, by_name, find, resolve
from tests.emulated.library import at_level
from tests.unit.kernels.attention_cases import make_case

pytestmark = pytest.mark.numeric


@pytest.fixture(params=[name for name in LEVELS if name != "torch"])
def level(request: pytest.FixtureRequest) -> Iterator[Level]:
    """Every compiled level."""
    with at_level(request.param) as level:
        yield level


@pytest.fixture
def kernel(level: Level) -> PagedAttention:
    """Both dtypes have one kernel."""
    kernel = resolve("paged_attention", "cpu", torch.float32, level)
    assert find(by_name("paged_attention"), "cpu", torch.bfloat16, level) is not None
    return kernel


@pytest.fixture
def num_threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(6, 2, 16, 16), (9, 3, 64, 16), (4, 4, 128, 32), (8, 1, 80, 16), (5, 1, 10, 64), (16, 2, 6, 16)],
)
def test_a_mixed_step_equals_plain_torch(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    kernel: PagedAttention,
) -> None:
    case = make_case(
        [(1, 0), (1, 15), (1, 16), (1, 700), (37, 0), (5, 30), (20, 505), (1, 511), (1, 512)],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        num_padding=2,
    )
    reference = case.copied()
    expected = reference.run_reference()

    out = case.run(kernel)

    tolerance = 2e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(case.keys, reference.keys, atol=tolerance, rtol=tolerance)
    assert torch.equal(case.values, reference.values)
    assert torch.equal(out[-2:], torch.zeros_like(out[-2:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 16, 21, 600])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(32, 32), (32, 20), (256, 64)])
def test_windows_softcaps_head_norms_and_partial_rotation_equal_plain_torch(
    window: int | None,
    softcap: float | None,
    head_dim: int,
    rotary_dim: int,
    dtype: torch.dtype,
    kernel: PagedAttention,
) -> None:
    case = make_case(
        [(1, 0), (1, 16), (1, 700), (37, 0), (20, 505), (1, 512), (3, 1100)],
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        dtype=dtype,
        num_padding=1,
    )
    case.window, case.softcap = window, softcap
    case.head_norms = HeadNorms(torch.linspace(0.2, 2, head_dim), torch.linspace(2, 0.2, head_dim), 1e-6)
    reference = case.copied()
    expected = reference.run_reference()

    out = case.run(kernel)

    tolerance = 2e-5 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(case.keys, reference.keys, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (21, None), (None, 3.0)])
def test_sinks_count_once_whatever_the_number_of_splits(
    window: int | None, softcap: float | None, dtype: torch.dtype, kernel: PagedAttention
) -> None:
    case = make_case([(1, 0), (1, 700), (37, 0), (5, 510), (3, 1100)], dtype=dtype, num_padding=1)
    case.window, case.softcap = window, softcap
    case.sinks = torch.linspace(-2, 4, 6)
    expected = case.copied().run_reference()

    out = case.run(kernel)

    tolerance = 2e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def test_a_sink_has_the_same_bits_in_one_split_as_beside_another(kernel: PagedAttention) -> None:
    whole = make_case([(520, 0)], num_heads=2, num_kv_heads=1)
    whole.sinks = torch.tensor([-1.0, 3.0])
    expected = whole.copied().run(kernel)

    short = whole.copied()  # which ends within the first split
    short.qkv, short.cos, short.sin = (part[:500].clone() for part in (whole.qkv, whole.cos, whole.sin))
    short.sequence_rows = torch.tensor([[0, 500, 0]], dtype=torch.int32)

    assert torch.equal(short.run(kernel), expected[:500])


def test_sinks_without_weight_change_no_bit_and_those_with_all_of_it_leave_nothing(
    kernel: PagedAttention,
) -> None:
    case = make_case([(1, 0), (1, 700), (7, 20)], num_heads=4)
    clean = case.copied().run(kernel).view(-1, 4, 16)
    case.sinks = torch.tensor([-1e4, 1e4, float("nan"), float("-inf")])

    out = case.run(kernel).view(-1, 4, 16)

    assert torch.equal(out[:, [0, 3]], clean[:, [0, 3]])
    assert (out[:, 1].abs() < 1e-30).all()
    assert out[:, 2].isnan().all()


def test_sinks_that_are_not_one_for_each_query_head_are_refused(kernel: PagedAttention) -> None:
    case = make_case([(1, 3)])
    case.sinks = torch.zeros(2)

    with pytest.raises(RuntimeError, match=r"sinks is Float \[2\]; give contiguous float32 \[6\]"):
        case.run(kernel)


def test_what_lies_before_the_window_is_not_read(kernel: PagedAttention) -> None:
    case = make_case([(1, 600)])
    case.window = 32
    clean = case.copied().run(kernel)
    case.keys[case.block_tables[0, :35].long()] = float("nan")
    case.values[case.block_tables[0, :35].long()] = float("nan")

    assert torch.equal(case.run(kernel), clean)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_neighbours_and_threads_change_no_bit(
    dtype: torch.dtype, window: int | None, kernel: PagedAttention
) -> None:
    whole = make_case([(600, 0)], head_dim=32, dtype=dtype)
    whole.window = window
    expected = whole.copied().run(kernel)

    pieces = []
    chunked = whole.copied()
    for start, end in [(0, 1), (1, 18), (18, 300), (300, 301), (301, 599), (599, 600)]:
        chunked.qkv, chunked.cos, chunked.sin = (
            part[start:end].clone() for part in (whole.qkv, whole.cos, whole.sin)
        )
        chunked.sequence_rows = torch.tensor([[0, end - start, start]], dtype=torch.int32)
        torch.set_num_threads(1 + start % 2)
        pieces.append(chunked.run(kernel))

    assert torch.equal(torch.cat(pieces), expected)


def test_nan_in_one_sequence_reaches_no_other(kernel: PagedAttention) -> None:
    case = make_case([(1, 40), (1, 40), (6, 0), (6, 10)])
    clean = case.copied().run(kernel)
    case.values[case.block_tables[1].long()] = float("nan")
    case.qkv[4] = float("nan")

    out = case.run(kernel)

    assert out[1].isnan().all()
    assert out[4:8].isnan().all()
    others = [0, *range(8, 14)]
    assert torch.equal(out[others], clean[others])


def test_what_the_kernel_cannot_read_is_left_to_torch(level: Level) -> None:
    assert build("cpu", torch.bfloat16, level).attends_in_place(16)
    assert not build("cpu", torch.bfloat16, level).attends_in_place(8)
    assert not build("cpu", torch.bfloat16, "torch").attends_in_place(16)
    assert resolve("paged_attention", "cpu", torch.float16, level) is None


def test_a_span_outside_its_batch_or_table_is_refused(kernel: PagedAttention) -> None:
    beyond_batch, beyond_table = make_case([(3, 0)]), make_case([(3, 0)])
    beyond_batch.sequence_rows[0, 1] = 4
    beyond_table.sequence_rows[0, 2] = 16

    with pytest.raises(RuntimeError, match="span 0 leaves the batch"):
        beyond_batch.run(kernel)
    with pytest.raises(RuntimeError, match="span 0 leaves its block table"):
        beyond_table.run(kernel)
