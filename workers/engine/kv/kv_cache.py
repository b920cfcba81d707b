"""The paged KV cache: which blocks are whose, and the tensors they name."""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SCRATCH_BLOCK = 0
"""Padding rows write here and padded block tables point here; it is never allocated."""


class BlockAllocator:
    """Hands out cache blocks by number and counts their users.

    A published block is known by the key of what it holds. It stays findable when its last user has gone;
    the one that has been idle longest is handed out again when no other block is left.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks is {num_blocks}; block 0 is scratch, so give at least 2")
        self.num_blocks = num_blocks
        self._num_users = [0] * num_blocks
        # A stack, lowest block on top: recently used blocks are the ones still in the CPU's caches.
        self._blank = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and without users, longest idle first
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks nobody uses, published ones among them: all can be allocated."""
        return len(self._blank) + len(self._idle)

    @property
    def num_published(self) -> int:
        """Blocks that can be found by their keys, used or not."""
        return len(self._block_of)

    def can_allocate(self, num_blocks: int) -> bool:
        """Whether `allocate(num_blocks)` would succeed."""
        return num_blocks <= self.num_free

    def allocate(self, num_blocks: int) -> list[int]:
        """Take `num_blocks` free blocks for one user; the caller has asked `can_allocate`."""
        assert self.can_allocate(num_blocks), f"{num_blocks} blocks asked, {self.num_free} free"
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(num_blocks)]
        for block in blocks:
            self._num_users[block] = 1
        return blocks

    def release(self, table: Sequence[int]) -> None:
        """Give up one use of each block, the last first: a prefix outlives what follows it."""
        for block in reversed(table):
            assert self._num_users[block] > 0, f"block {block} released twice"
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    def find(self, key: bytes) -> int | None:
        """Return the block published under a key."""
        return self._block_of.get(key)

    def num_idle_among(self, blocks: Iterable[int]) -> int:
        """Return how many of these blocks would no longer be free once shared."""
        return sum(self._num_users[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one user to published blocks."""
        for block in blocks:
            assert block in self._key_of, f"block {block} is shared but not published"
            self._idle.pop(block, None)
            self._num_users[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Make a used block findable; if another holds the same already, that one stays the known one."""
        assert self._num_users[block] > 0, f"block {block} is published but nobody's"
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def retract(self, block: int) -> None:
        """Make a block unfindable, if it was published; its users keep it."""
        key = self._key_of.pop(block, None)
        if key is None:
            return
        del self._block_of[key]
        if block in self._idle:
            del self._idle[block]
            self._blank.append(block)

    def check_idle(self) -> None:
        """Assert that no block is in use; looks at two numbers only."""
        assert self.num_free == self.num_blocks - 1, f"{self.num_free} of {self.num_blocks - 1} blocks free"

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Assert that these tables, the free blocks and the keys together account for every block."""
        num_users = [0] * self.num_blocks
        for table in block_tables:
            for block in table:
                num_users[block] += 1
        assert num_users == self._num_users, "block tables and use counts disagree"
        assert len(set(self._blank)) == len(self._blank), "a block is free twice"
        unused = {block for block in range(1, self.num_blocks) if num_users[block] == 0}
        assert unused == {*self._blank, *self._idle}, "the free blocks are not exactly the unused ones"
        assert self._key_of == {block: key for key, block in self._block_of.items()}, (
            "keys and published blocks disagree"
        )
        assert self._key_of.keys() & unused == self._idle.keys(), (
            "the idle blocks are not exactly the published ones without users"
        )

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block


class KVCache:
    """Keys and values of every layer, [num_layers, num_blocks, num_kv_heads, block_size, head_dim] each.

    On the CPU a block that was never written takes no memory.
    """

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
        self.keys = _zeros(shape, dtype, device)
        self.values = _zeros(shape, dtype, device)
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a tensor of zeros; on the CPU of pages that the kernel gives when they are first written.

    `torch.zeros` writes them all, which a worker that serves little would hold for nothing.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
