from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.lora.residency.arena import REGION_BYTES, Arena, Region

SIZES = st.integers(0, 5 * REGION_BYTES)


@given(st.lists(st.one_of(SIZES, st.integers(-8, -1)), max_size=60))
def test_regions_never_overlap_and_all_bytes_come_back(steps: list[int]) -> None:
    """A number is so many bytes to take; a negative one gives back one of those that are held."""
    arena, held = Arena(20 * REGION_BYTES), list[Region]()
    for step in steps:
        if step >= 0:
            region = arena.allocate(step)
            if region is not None:
                assert region.num_bytes >= step
                held.append(region)
        elif held:
            arena.release(held.pop(step % len(held)))
        held.sort()
        assert all(left.end <= right.start for left, right in pairwise(held))
        assert all(region.start >= 0 and region.end <= arena.num_bytes for region in held)
        assert arena.num_free_bytes == arena.num_bytes - sum(region.num_bytes for region in held)
    for region in held:
        arena.release(region)

    assert arena.allocate(20 * REGION_BYTES) == Region(0, 20 * REGION_BYTES)


def test_the_first_gap_that_is_large_enough_is_taken() -> None:
    arena = Arena(10 * REGION_BYTES)
    regions = [arena.allocate(size * REGION_BYTES) for size in (2, 1, 3, 1)]
    assert regions[0] is not None
    assert regions[2] is not None
    arena.release(regions[0])
    arena.release(regions[2])

    assert arena.allocate(3 * REGION_BYTES) == regions[2]
    assert arena.allocate(1) == Region(0, REGION_BYTES)
    assert arena.allocate(4 * REGION_BYTES) is None


def test_a_region_cannot_be_given_back_twice() -> None:
    arena = Arena(4 * REGION_BYTES)
    region = arena.allocate(1)
    assert region is not None
    arena.release(region)

    with pytest.raises(ValueError, match="free already"):
        arena.release(region)
