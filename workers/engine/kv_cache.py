"""The paged KV cache: which blocks are whose, and the tensors they name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SCRATCH_BLOCK = 0
"""Padding rows write here and padded block tables point here; it is never allocated."""


class BlockAllocator:
    """Hands out cache blocks by number; blocks are counted, so that sequences may share them later."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks is {num_blocks}; block 0 is scratch, so give at least 2")
        self.num_blocks = num_blocks
        self._num_users = [0] * num_blocks
        # A stack, lowest block on top: recently used blocks are the ones still in the CPU's caches.
        self._free = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))

    @property
    def num_free(self) -> int:
        """Blocks nobody uses."""
        return len(self._free)

    def can_allocate(self, num_blocks: int) -> bool:
        """Whether `allocate(num_blocks)` would succeed."""
        return num_blocks <= len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take `num_blocks` free blocks for one user; the caller has asked `can_allocate`."""
        assert self.can_allocate(num_blocks), f"{num_blocks} blocks asked, {len(self._free)} free"
        blocks = [self._free.pop() for _ in range(num_blocks)]
        for block in blocks:
            self._num_users[block] = 1
        return blocks

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one use of each block; blocks without users become free."""
        for block in blocks:
            assert self._num_users[block] > 0, f"block {block} released twice"
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                self._free.append(block)

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Assert that these tables and the free list together account for every block."""
        num_users = [0] * self.num_blocks
        for table in block_tables:
            for block in table:
                num_users[block] += 1
        assert num_users == self._num_users, "block tables and use counts disagree"
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        expected = {block for block in range(1, self.num_blocks) if num_users[block] == 0}
        assert free == expected, "the free list does not hold exactly the unused blocks"


class KVCache:
    """Keys and values of every layer, [num_layers, num_blocks, num_kv_heads, block_size, head_dim] each."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.layers: tuple[tuple[Tensor, Tensor], ...] = tuple(zip(self.keys, self.values, strict=True))

    def zero(
        self,
        blocks: Tensor,  # [num_fresh_blocks] int64
    ) -> None:
        """Clear blocks that change hands.

        A masked position still takes part in the arithmetic with weight zero, and 0 * NaN is NaN: what a
        failed request left in a block must not reach the next one.
        """
        self.keys.index_fill_(1, blocks, 0)
        self.values.index_fill_(1, blocks, 0)
