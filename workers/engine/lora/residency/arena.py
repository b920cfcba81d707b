"""Hands out pieces of one stretch of memory: first fit, neighbours joined again when they are given back."""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

REGION_BYTES = 512
"""Regions begin and end at multiples of this."""


class Region(NamedTuple):
    """Bytes of the arena."""

    start: int
    num_bytes: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.num_bytes


def region_bytes(num_bytes: int) -> int:
    """Return what so many bytes take up."""
    return max(1, -(-num_bytes // REGION_BYTES)) * REGION_BYTES


class Arena:
    """Knows which bytes are free."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes // REGION_BYTES * REGION_BYTES
        self._free = [Region(0, self.num_bytes)] if self.num_bytes else []

    @property
    def num_free_bytes(self) -> int:
        """Bytes that are nobody's, however scattered."""
        return sum(region.num_bytes for region in self._free)

    def allocate(self, num_bytes: int) -> Region | None:
        """Take the first gap that is large enough; None if no single one is."""
        wanted = region_bytes(num_bytes)
        for place, gap in enumerate(self._free):
            if gap.num_bytes >= wanted:
                rest = Region(gap.start + wanted, gap.num_bytes - wanted)
                self._free[place : place + 1] = [rest] if rest.num_bytes else []
                return Region(gap.start, wanted)
        return None

    def release(self, region: Region) -> None:
        """Give a region back."""
        insort(self._free, region)
        joined: list[Region] = []
        for gap in self._free:
            if joined and joined[-1].end > gap.start:
                raise ValueError(f"{gap} of the arena is free already, next to {joined[-1]}")
            if joined and joined[-1].end == gap.start:
                joined[-1] = Region(joined[-1].start, joined[-1].num_bytes + gap.num_bytes)
            else:
                joined.append(gap)
        self._free = joined
