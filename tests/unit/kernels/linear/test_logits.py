from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.cpu import library
from kernels.cpu.library import Level
from kernels.linear.logits import Head, HeadKernel, logits_by_onednn, logits_on_cpu, pack_head
from tests.emulated.library import LEVEL, at_level
from tests.unit.kernels.conftest import Resolve
from tests.unit.products import assert_same_rows

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "width"), [(1, 1), (17, 33), (259, 64), (1000, 95)])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 9, 11])
def test_logits_are_exact_to_float32(
    num_rows: int, vocab_size: int, width: int, dtype: torch.dtype, resolve: Resolve
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(vocab_size, width, generator=generator).to(dtype)
    x = torch.randn(num_rows, width, generator=generator).to(dtype)

    logits = Head(weight, resolve("logits", dtype))(x)

    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-4, rtol=1e-5)


def test_a_row_in_bfloat16_does_not_depend_on_its_batch(level: Level, resolve: Resolve) -> None:
    head = Head(torch.randn(259, 72).bfloat16(), _where_it_lies(resolve("logits", torch.bfloat16)))
    x = torch.randn(23, 72).bfloat16()

    whole = head(x)

    # torch's own product is MKL's in float32, which is steady for multiples of 4 rows at most.
    for num_rows in range(4, 24, 4) if level == "torch" else range(1, 24):
        multiplied_in = torch.float32 if level == "torch" else None
        assert_same_rows(head(x[:num_rows]), whole[:num_rows], multiplied_in=multiplied_in, size=8)


def _where_it_lies(kernel: HeadKernel) -> HeadKernel:
    """Leave oneDNN's product out, for whose rows nobody vouches."""
    return kernel._replace(packed=None)


@pytest.fixture
def tiles_level() -> Iterator[Level]:
    """The level that has oneDNN's product of the head, emulated if need be."""
    with at_level(LEVEL) as level:
        yield level


@pytest.mark.parametrize(("vocab_size", "width"), [(1, 2), (32, 64), (259, 96)])
@pytest.mark.parametrize("num_rows", [1, 5, 32, 33])
def test_oneDNN_multiplies_a_packed_head_in_float32(
    num_rows: int, vocab_size: int, width: int, tiles_level: Level
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(size, width, generator=generator).bfloat16() for size in (vocab_size, num_rows))
    in_pairs = library.operator("has_tiles", tiles_level)()  # else in the layout that all processors multiply

    logits = Head(weight, logits_by_onednn(tiles_level, in_pairs=in_pairs))(x)

    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-4, rtol=1e-5)


def test_a_head_is_packed_where_there_are_tiles_and_nowhere_else(tiles_level: Level) -> None:
    has_tiles = library.operator("has_tiles", tiles_level)()

    assert (logits_on_cpu(tiles_level).packed is not None) == has_tiles


def test_pairs_of_a_packed_head_are_two_elements_of_one_token() -> None:
    weight = torch.arange(40 * 6).view(40, 6)

    plain, pairs = pack_head(weight, in_pairs=False), pack_head(weight, in_pairs=True)

    assert plain.shape == pairs.shape == (2, 6, 32)
    assert torch.equal(plain[1, :, 7], weight[39])
    assert torch.equal(pairs.view(2, 3, 32, 2)[1, :, 7].flatten(), weight[39])
    assert not plain[1, :, 8:].any()
    assert not pairs.view(2, 3, 32, 2)[1, :, 8:].any()


def test_a_head_of_odd_width_cannot_be_packed_in_pairs() -> None:
    with pytest.raises(ValueError, match=r"the head is \(4, 3\); only an even hidden_size"):
        pack_head(torch.zeros(4, 3), in_pairs=True)
