"""Lets a sequence begin with the KV blocks that others have filled for the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from workers.engine.core.sequence import SequenceState
from workers.engine.kv.kv_cache import BlockAllocator
from workers.engine.kv.prefix_keys import KeyChain, kv_identity

WORTH_AWAITING_BLOCKS = 4
"""So many blocks at least must be underway for a sequence to wait for them, which costs it a step."""


class AdapterEffects(Protocol):
    """The part of the adapter manager that says whose keys and values are the base's."""

    def changes_kv(self, revision: str) -> bool:
        """Whether a resident revision changes any key or value."""
        ...


class PrefixCache:
    """Finds, adopts and publishes blocks by what they hold.

    A block is published only when its sequence has sampled a token from finite logits *behind* it. Keys and
    values that are not finite make every later position of their sequence not finite, for each attends to
    them (a sliding window hands it on from position to position), so nothing published is poisoned, and no
    one can have adopted anything of a sequence that fails before its first token. A prompt in chunks is
    hence published with its last one. Until then its blocks are *underway*, and who begins alike had better
    wait than compute the same beside it; several completions of one prompt always do.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        adapters: AdapterEffects | None,
        *,
        base: str,
        dtype: str,
        block_size: int,
    ) -> None:
        """`base` identifies the base model's weights, `dtype` the cache's elements."""
        self._allocator = allocator
        self._adapters = adapters
        self._base = base
        self._dtype = dtype
        self._block_size = block_size
        self._underway: dict[bytes, SequenceState] = {}
        """Keys, and the running sequence that will publish each."""
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def find(self, sequence: SequenceState) -> list[int]:
        """Return the blocks that hold a sequence's first tokens, never all of them: one must be computed.

        Call it while the sequence holds its slots: only then is it certain which revisions it runs with.
        """
        identity = self._identity(sequence)
        if sequence.keys is None or sequence.keys.identity != identity:
            sequence.keys = KeyChain(identity, self._block_size)
        found: list[int] = []
        if not sequence.reads_prefix_cache:
            return found
        num_blocks = (sequence.num_tokens - 1) // self._block_size
        for key in sequence.keys.first(num_blocks, sequence.token_ids):
            block = self._allocator.find(key)
            if block is None:
                break
            found.append(block)
        return found

    def is_worth_awaiting(self, sequence: SequenceState, found: Sequence[int]) -> bool:
        """Whether a running sequence will soon publish enough of what comes after the blocks just found."""
        num_wanted = len(found) + WORTH_AWAITING_BLOCKS
        if not sequence.reads_prefix_cache or num_wanted > (sequence.num_tokens - 1) // self._block_size:
            return False
        return self._keys(sequence, num_wanted)[-1] in self._underway

    def adopt(self, sequence: SequenceState, blocks: Sequence[int]) -> None:
        """Begin a sequence with the blocks just found for it."""
        assert not sequence.block_table, f"{sequence.request_id} has blocks already"
        self._allocator.share(blocks)
        sequence.block_table.extend(blocks)
        sequence.num_computed_tokens = len(blocks) * self._block_size
        sequence.num_adopted_blocks = sequence.num_published_blocks = len(blocks)
        for key in self._keys(sequence, sequence.num_tokens // self._block_size)[len(blocks) :]:
            self._underway.setdefault(key, sequence)
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        if sequence.reads_prefix_cache:
            self.num_query_tokens += sequence.num_tokens
            self.num_hit_tokens += sequence.num_computed_tokens

    def publish(self, sequence: SequenceState) -> None:
        """Offer the blocks a sequence has filled to others; its latest logits were finite."""
        num_full = sequence.num_computed_tokens // self._block_size
        first = sequence.num_published_blocks
        if num_full == first:
            return
        keys = self._keys(sequence, num_full)
        for index in range(first, num_full):
            self._allocator.publish(sequence.block_table[index], keys[index])
            self._underway.pop(keys[index], None)
        sequence.num_published_blocks = num_full

    def let_go(self, sequence: SequenceState) -> None:
        """Note that a sequence is about to lose its blocks: what it has not published, it will not."""
        keys = [] if sequence.keys is None else sequence.keys.known[sequence.num_published_blocks :]
        for key in keys:
            if self._underway.get(key) is sequence:
                del self._underway[key]

    def check(self, running: Sequence[SequenceState]) -> None:
        """Assert that whatever others may wait for is being computed."""
        assert all(sequence in running for sequence in self._underway.values()), (
            "blocks are underway, but whose they are does not run"
        )

    def retract(self, sequence: SequenceState) -> None:
        """Take back what a sequence published, for its logits are no longer finite.

        By the class's rule those blocks are sound, so this guards against what breaks the rule (a bit that
        flipped in memory): whoever asks again computes anew. What the sequence adopted stays, or an adapter
        that ruins the head alone could empty the base's cache for everybody. Sequences that share a
        retracted block keep it, and their own logits judge it.
        """
        for block in sequence.block_table[sequence.num_adopted_blocks : sequence.num_published_blocks]:
            self._allocator.retract(block)

    def _keys(self, sequence: SequenceState, num_blocks: int) -> list[bytes]:
        assert sequence.keys is not None, f"{sequence.request_id} was not looked up"
        return sequence.keys.first(num_blocks, sequence.token_ids)

    def _identity(self, sequence: SequenceState) -> bytes:
        members = [member for member in sequence.kv_identity if self._changes_kv(*member)]
        return kv_identity(self._base, self._dtype, members, sequence.cache_salt)

    def _changes_kv(self, revision: str | None, _scale: float) -> bool:
        assert revision is not None, "a sequence was looked up before it had its slots"
        assert self._adapters is not None, "a request with an adapter was let in without LoRA"
        return self._adapters.changes_kv(revision)
