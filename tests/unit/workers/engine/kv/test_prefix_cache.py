"""Which blocks a sequence may begin with, and from when on others may begin with its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workers.engine import LoRAMix, LoRARequest, SamplingParams
from workers.engine.core.composition import AcquiredSlot
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.sequence import SequenceState
from workers.engine.kv.kv_cache import BlockAllocator
from workers.engine.kv.prefix_cache import PrefixCache

SIZE = 16


class Effects:
    """All adapters change keys and values, but for the revision "head"."""

    def changes_kv(self, revision: str) -> bool:
        return revision != "head"


class Cache:
    """A prefix cache, with sequences that compute all their tokens at once."""

    def __init__(self, num_blocks: int = 20) -> None:
        self.allocator = BlockAllocator(num_blocks + 1)
        self.prefixes = PrefixCache(self.allocator, Effects(), base="base", dtype="float32", block_size=SIZE)

    def admit(self, sequence: SequenceState) -> int:
        """Start a sequence; returns how many of its tokens it found computed."""
        sequence.take_slots([AcquiredSlot(member.lora.lora_path, 0) for member in sequence.composition])
        self.prefixes.adopt(sequence, self.prefixes.find(sequence))
        num_blocks = -(-sequence.num_tokens // SIZE) - len(sequence.block_table)
        sequence.block_table.extend(self.allocator.allocate(num_blocks))
        return sequence.num_computed_tokens

    def compute(self, sequence: SequenceState) -> None:
        """Run a sequence's step and find its logits finite."""
        sequence.num_computed_tokens = sequence.num_tokens
        self.prefixes.publish(sequence)

    def serve(self, sequence: SequenceState) -> int:
        """Admit, compute and end a sequence; returns how many of its tokens it found computed."""
        num_found = self.admit(sequence)
        self.compute(sequence)
        self.end(sequence)
        return num_found

    def end(self, sequence: SequenceState) -> None:
        self.allocator.release(sequence.block_table)


def sequence(num_tokens: int, lora: AnyLoRA | None = None, *, salt: str | None = None) -> SequenceState:
    return SequenceState(
        "request",
        None,
        list(range(num_tokens)),
        SamplingParams(),
        lora,
        seed=0,
        max_total_tokens=1000,
        stop_checker=None,
        arrival_time_s=0.0,
        cache_salt=salt,
    )


def adapter(name: str, number: int, revision: str) -> LoRARequest:
    """Return an adapter whose files, at its path, have the digest that its path says."""
    return LoRARequest(name, number, revision)


def mix(*members: tuple[str, float]) -> LoRAMix:
    return LoRAMix([(adapter(revision, 1, revision), weight) for revision, weight in members])


def test_whole_blocks_are_found_and_one_token_is_always_left_to_compute() -> None:
    cache = Cache()

    assert cache.serve(sequence(48)) == 0
    assert [cache.serve(sequence(length)) for length in (16, 17, 47, 48, 49, 100)] == [0, 16, 32, 32, 48, 48]


def test_a_prefix_ends_at_the_first_token_that_differs() -> None:
    cache = Cache()
    other = sequence(64)
    other.token_ids[20] = 999
    cache.serve(sequence(64))

    assert cache.serve(other) == 16


def test_nothing_is_found_before_finite_logits_stand_behind_it() -> None:
    cache = Cache()
    one = sequence(40)
    cache.admit(one)
    one.num_computed_tokens = 32  # a chunk of the prompt is computed, no token is sampled yet

    assert cache.admit(sequence(40)) == 0
    cache.compute(one)
    assert cache.admit(sequence(40)) == 32


def test_the_blocks_of_generated_tokens_are_found_as_well() -> None:
    cache = Cache()
    one = sequence(20)
    cache.admit(one)
    cache.compute(one)
    one.token_ids += range(20, 36)
    one.block_table += cache.allocator.allocate(1)
    one.num_computed_tokens = 35  # the last token is sampled, its keys and values are not computed
    cache.prefixes.publish(one)

    assert cache.admit(sequence(60)) == 32


def test_a_failed_sequence_takes_back_what_it_published_but_not_what_it_found() -> None:
    cache = Cache()
    cache.serve(sequence(20))
    failed, sharer = sequence(50), sequence(50)
    cache.admit(failed)
    cache.compute(failed)
    assert cache.admit(sharer) == 48

    cache.prefixes.retract(failed)
    cache.end(failed)

    cache.allocator.check([sharer.block_table])
    assert cache.admit(sequence(50)) == 16


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (None, None, True),
        (adapter("a", 1, "r1"), adapter("a", 1, "r1"), True),
        (adapter("a", 1, "r1"), adapter("alias", 2, "r1"), True),
        (adapter("a", 1, "r1"), adapter("a", 1, "r2"), False),
        (adapter("a", 1, "r1"), adapter("b", 1, "r2"), False),
        (None, adapter("a", 1, "r1"), False),
        (None, adapter("tuned", 1, "head"), True),
        (adapter("tuned", 1, "head"), None, True),
        (adapter("a", 1, "r1"), replace(adapter("a", 1, "r1"), scale=0.5), False),
        (adapter("r1", 1, "r1"), mix(("r1", 1.0)), True),
        (mix(("r1", 1.0), ("r2", 1.0)), mix(("r2", 1.0), ("r1", 1.0)), False),
        (mix(("r1", 1.0), ("r2", 1.0)), mix(("r1", 1.0), ("r2", 0.5)), False),
        (mix(("r1", 1.0), ("head", 0.5)), mix(("r1", 1.0)), True),
    ],
    ids=[
        "base and base",
        "one adapter",
        "two names of the same files",
        "one name of different files",
        "one id of different files",
        "base and adapter",
        "base and an adapter that changes no key and no value",
        "the other way round",
        "another scale",
        "a mix of one",
        "another order",
        "other weights",
        "a mix with one that changes nothing",
    ],
)
def test_behaviour_23_keys_and_values_are_shared_by_content_never_by_name_or_id(
    one: AnyLoRA | None, other: AnyLoRA | None, share: bool
) -> None:
    cache = Cache()
    cache.serve(sequence(40, one))

    assert cache.serve(sequence(40, other)) == (32 if share else 0)


def test_requests_with_different_salts_share_nothing() -> None:
    cache = Cache()
    cache.serve(sequence(40, salt="one"))

    assert [cache.serve(sequence(40, salt=salt)) for salt in ("two", None, "", "one")] == [0, 0, 0, 32]


def test_a_request_that_wants_all_its_logits_finds_nothing_and_still_serves_others() -> None:
    cache = Cache()
    whole = sequence(40)
    whole.reads_prefix_cache = False
    cache.serve(sequence(20))

    assert cache.serve(whole) == 0
    assert cache.serve(sequence(40)) == 32


def test_hits_are_counted_in_tokens_of_the_sequences_that_looked() -> None:
    cache = Cache()
    blind = sequence(40)
    blind.reads_prefix_cache = False
    for one in (sequence(40), blind, sequence(40)):
        cache.serve(one)

    assert (cache.prefixes.num_query_tokens, cache.prefixes.num_hit_tokens) == (80, 32)


def test_blocks_underway_are_worth_awaiting_until_they_are_published_or_given_up() -> None:
    cache = Cache()
    one, other = sequence(100), sequence(90)
    cache.admit(one)
    short, unlike, salted = sequence(64), sequence(90), sequence(90, salt="salt")
    unlike.token_ids[60] = 999

    def awaited(newcomer: SequenceState) -> bool:
        return cache.prefixes.is_worth_awaiting(newcomer, cache.prefixes.find(newcomer))

    # Of 64 tokens three blocks at most would be found, and so of those that part ways in the fourth.
    assert [awaited(newcomer) for newcomer in (other, short, unlike, salted)] == [True, False, False, False]
    cache.prefixes.check([one])
    with pytest.raises(AssertionError, match="does not run"):
        cache.prefixes.check([])
    cache.compute(one)
    assert not awaited(other)
    assert len(cache.prefixes.find(other)) == 5
    cache.prefixes.check([])


def test_whoever_gives_way_leaves_nothing_to_wait_for() -> None:
    cache = Cache()
    one, other = sequence(100), sequence(100)
    cache.admit(one)

    cache.prefixes.let_go(one)

    assert not cache.prefixes.is_worth_awaiting(other, cache.prefixes.find(other))
    cache.prefixes.check([])
