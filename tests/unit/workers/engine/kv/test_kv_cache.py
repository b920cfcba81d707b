"""Cache blocks are never lost, never given twice, and come back clean."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.kv.kv_cache import SCRATCH_BLOCK, BlockAllocator, KVCache

MOVES = st.sampled_from(["allocate", "release", "publish", "share", "retract"])


@given(st.lists(st.tuples(MOVES, st.integers(1, 6)), max_size=80))
def test_blocks_are_accounted_for_whatever_happens(moves: list[tuple[str, int]]) -> None:
    allocator = BlockAllocator(16)
    tables: list[list[int]] = []

    for move, number in moves:
        table = tables[number % len(tables)] if tables else []
        if move == "allocate" and allocator.can_allocate(number):
            tables.append(allocator.allocate(number))
        elif move == "release" and tables:
            tables.remove(table)
            allocator.release(table)
        elif move == "publish":
            for index, block in enumerate(table):
                allocator.publish(block, bytes([number, index]))
        elif move == "share":
            found = [allocator.find(bytes([number, index])) for index in range(6)]
            tables.append([block for block in found if block is not None])
            allocator.share(tables[-1])
        elif move == "retract":
            for block in table[: number - 1]:
                allocator.retract(block)
        allocator.check(tables)

    held = {block for table in tables for block in table}
    assert SCRATCH_BLOCK not in held
    assert allocator.num_free == 15 - len(held)
    assert allocator.can_allocate(allocator.num_free)


def test_an_idle_block_is_found_until_no_blank_one_is_left_and_the_longest_idle_goes_first() -> None:
    allocator = BlockAllocator(6)
    old, young = allocator.allocate(2), allocator.allocate(2)
    for block in (*old, *young):
        allocator.publish(block, bytes([block]))
    allocator.release(old)
    allocator.release(young)

    assert (allocator.num_free, allocator.num_published) == (5, 4)
    allocator.allocate(1)
    assert allocator.num_published == 4
    assert allocator.allocate(3) == [old[1], old[0], young[1]]
    assert allocator.find(bytes([young[0]])) == young[0]
    assert allocator.num_published == 1


def test_a_block_in_use_is_never_evicted_and_a_shared_one_has_several_users() -> None:
    allocator = BlockAllocator(4)
    (block,) = table = allocator.allocate(1)
    allocator.publish(block, b"key")
    allocator.release(table)
    allocator.share([block])
    allocator.share([block])

    assert allocator.num_idle_among([block]) == 0
    assert not allocator.can_allocate(3)
    assert block not in allocator.allocate(2)
    allocator.release([block])
    assert not allocator.can_allocate(1)
    allocator.release([block])
    assert allocator.allocate(1) == [block]
    assert allocator.find(b"key") is None


def test_the_first_block_of_a_key_stays_the_known_one() -> None:
    allocator = BlockAllocator(4)
    one, other = allocator.allocate(2)

    allocator.publish(one, b"key")
    allocator.publish(other, b"key")

    assert allocator.find(b"key") == one
    allocator.release([one, other])
    allocator.check([])


def test_a_retracted_block_is_kept_by_its_users_and_found_by_nobody() -> None:
    allocator = BlockAllocator(4)
    table = allocator.allocate(1)
    allocator.publish(table[0], b"key")
    allocator.share(table)

    allocator.retract(table[0])

    assert allocator.find(b"key") is None
    allocator.check([table, table])
    allocator.release(table)
    allocator.release(table)
    allocator.check([])


def test_a_leak_and_a_double_release_are_found() -> None:
    allocator = BlockAllocator(8)
    table = allocator.allocate(3)

    with pytest.raises(AssertionError, match="disagree"):
        allocator.check([])
    allocator.release(table)
    with pytest.raises(AssertionError, match="released twice"):
        allocator.release(table[:1])


def test_a_key_without_its_block_is_found() -> None:
    allocator = BlockAllocator(8)
    table = allocator.allocate(1)
    allocator.publish(table[0], b"key")

    del allocator._key_of[table[0]]

    with pytest.raises(AssertionError, match="keys and published blocks"):
        allocator.check([table])


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


def test_blocks_that_were_never_written_take_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    cache = KVCache(
        num_layers=2,
        num_blocks=1024,
        num_kv_heads=4,
        block_size=16,
        head_dim=64,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    assert cache.keys.nbytes + cache.values.nbytes == 1 << 25

    cache.keys[1, 3] = 1.0

    assert cache.keys[1, 3].eq(1).all()
    assert cache.keys[1, 4].eq(0).all()
    assert cache.values[0, 1].eq(0).all()
    assert resident_bytes() - before < 1 << 23
