"""Cache blocks are never lost, never given twice, and come back clean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.kv_cache import SCRATCH_BLOCK, BlockAllocator, KVCache


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=60))
def test_blocks_are_accounted_for_whatever_happens(moves: list[tuple[bool, int]]) -> None:
    allocator = BlockAllocator(16)
    tables: list[list[int]] = []

    for takes, number in moves:
        if takes and allocator.can_allocate(number):
            tables.append(allocator.allocate(number))
        elif not takes and tables:
            allocator.release(tables.pop(number % len(tables)))
        allocator.check(tables)

    held = [block for table in tables for block in table]
    assert SCRATCH_BLOCK not in held
    assert allocator.num_free == 15 - len(held)


def test_a_leak_and_a_double_release_are_found() -> None:
    allocator = BlockAllocator(8)
    table = allocator.allocate(3)

    with pytest.raises(AssertionError, match="disagree"):
        allocator.check([])
    allocator.release(table)
    with pytest.raises(AssertionError, match="released twice"):
        allocator.release(table[:1])


def test_an_allocator_needs_more_than_the_scratch_block() -> None:
    with pytest.raises(ValueError, match="num_blocks is 1"):
        BlockAllocator(1)


def test_clearing_touches_the_named_blocks_of_every_layer_only() -> None:
    cache = KVCache(
        num_layers=2,
        num_blocks=4,
        num_kv_heads=1,
        block_size=16,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.keys.fill_(math.nan)
    cache.values.fill_(1.0)

    cache.zero(torch.tensor([1, 3]))

    assert cache.keys[:, [1, 3]].eq(0).all()
    assert cache.values[:, [1, 3]].eq(0).all()
    assert cache.keys[:, [0, 2]].isnan().all()
    assert cache.values[:, [0, 2]].eq(1).all()
