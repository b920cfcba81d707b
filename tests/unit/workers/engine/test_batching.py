"""Who joins the next step, who waits, who gives way; no model is needed to see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as ListLike

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.segments import SlotScale
from workers.engine import LoRAMix, LoRARequest, SamplingParams
from workers.engine.batching import MAX_SLOT_WAIT_STEPS, Batcher, Schedule
from workers.engine.errors import AdapterNotFound
from workers.engine.kv_cache import BlockAllocator
from workers.engine.lora.composition import Seat
from workers.engine.sequence import Sequence

BLOCK_SIZE = 16


class Slots:
    """An adapter manager's answers: what is loaded, and how many slots there are."""

    def __init__(self, num_slots: int, loaded: set[str] | None = None) -> None:
        self.num_slots = num_slots
        self.loaded = loaded
        self.uses: Counter[str] = Counter()

    def acquire_all(self, requests: ListLike[LoRARequest]) -> tuple[Seat, ...] | None:
        names = [request.lora_name for request in requests]
        if "missing" in names:
            raise AdapterNotFound("no such adapter")
        if not all(self.is_loaded(request) for request in requests):
            return None
        if len({*+self.uses, *names}) > self.num_slots:
            return None
        self.uses.update(names)
        return tuple(Seat(name, sorted(+self.uses).index(name)) for name in names)

    def release(self, request: LoRARequest) -> None:
        self.uses[request.lora_name] -= 1
        assert self.uses[request.lora_name] >= 0

    def is_loaded(self, request: LoRARequest) -> bool:
        return self.loaded is None or request.lora_name in self.loaded


def lora(names: str) -> LoRAMix:
    """A mix of the adapters of one letter that `names` lists, or of the one that it names."""
    members = names.split("+")
    return LoRAMix([(LoRARequest(name, ord(name[0]), "path"), 0.5) for name in members])


def sequence(request_id: str, num_prompt_tokens: int = 10, adapters: str | None = None) -> Sequence:
    return Sequence(
        request_id,
        None,
        [3] * num_prompt_tokens,
        SamplingParams(),
        None if adapters is None else lora(adapters),
        seed=0,
        max_total_tokens=200,
        stop_checker=None,
        arrival_time_s=0.0,
    )


def batcher(
    num_blocks: int = 100, slots: Slots | None = None, *, max_num_seqs: int = 8, budget: int = 64
) -> Batcher:
    return Batcher(
        BlockAllocator(num_blocks + 1),
        slots,
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )


def rows(schedule: Schedule) -> list[tuple[str, int]]:
    return [(row.sequence.request_id, row.num_tokens) for row in schedule.rows]


def run(schedule: Schedule) -> None:
    """Pretend the step was executed: a complete sequence gains a token."""
    for row in schedule.rows:
        row.sequence.num_computed_tokens += row.num_tokens
        if row.sequence.num_uncomputed_tokens == 0:
            row.sequence.token_ids.append(3)


def test_running_sequences_go_first_and_prompts_share_what_is_left_of_the_budget() -> None:
    batch = batcher(budget=20)
    for name in "abc":
        batch.add(sequence(name, 12))

    seen = []
    for _ in range(3):
        schedule = batch.schedule()
        seen.append(rows(schedule))
        run(schedule)

    assert seen == [[("a", 12), ("b", 8)], [("a", 1), ("b", 4), ("c", 12)], [("a", 1), ("b", 1), ("c", 1)]]


def test_no_more_sequences_run_than_there_are_seats() -> None:
    batch = batcher(max_num_seqs=2)
    for name in "abc":
        batch.add(sequence(name))

    assert rows(batch.schedule()) == [("a", 10), ("b", 10)]
    assert [waiting.request_id for waiting in batch.waiting] == ["c"]


def test_a_long_prompt_is_not_overtaken_for_want_of_blocks() -> None:
    batch = batcher(num_blocks=6)
    batch.add(sequence("running", 40))
    run(batch.schedule())
    batch.add(sequence("long", 60))
    batch.add(sequence("short", 1))

    assert rows(batch.schedule()) == [("running", 1)]


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    batch = batcher(num_blocks=4)
    old, young = sequence("old", 16), sequence("young", 16)
    batch.add(old)
    batch.add(young)
    run(batch.schedule())
    run(batch.schedule())
    batch.add(sequence("late", 1))
    for _ in range(BLOCK_SIZE):
        run(batch.schedule())

    assert (batch.num_preemptions, young.num_preemptions, old.num_preemptions) == (1, 1, 0)
    assert (young.block_table, young.num_computed_tokens) == ([], 0)
    assert [waiting.request_id for waiting in batch.waiting] == ["young", "late"]

    batch.remove(old)

    assert rows(batch.schedule())[0] == ("young", young.num_tokens)


def test_an_adapter_that_is_not_ready_blocks_nobody() -> None:
    slots = Slots(1, loaded={"a"})
    batch = batcher(slots=slots)
    for name, adapter in [("1", "b"), ("2", "a"), ("3", None), ("4", "b")]:
        batch.add(sequence(name, 10, adapter))

    assert rows(batch.schedule()) == [("2", 10), ("3", 10)]

    slots.loaded = {"a", "b"}
    slots.num_slots = 2
    assert rows(batch.schedule())[2:] == [("1", 10), ("4", 10)]


def test_a_refused_adapter_is_reported_and_the_others_are_served() -> None:
    batch = batcher(slots=Slots(1))
    batch.add(sequence("bad", 10, "missing"))
    batch.add(sequence("good", 10, "a"))

    schedule = batch.schedule()

    assert [refusal.sequence.request_id for refusal in schedule.refusals] == ["bad"]
    assert rows(schedule) == [("good", 10)]
    assert len(batch) == 1


def test_slots_are_released_when_sequences_end_or_give_way() -> None:
    slots = Slots(2)
    batch = batcher(slots=slots)
    one, two = sequence("one", 10, "a"), sequence("two", 10, "b")
    batch.add(one)
    batch.add(two)
    batch.schedule()
    assert slots.uses == {"a": 1, "b": 1}

    batch.remove(one)

    assert (slots.uses["a"], one.slots) == (0, ())


def test_a_loaded_adapter_gets_its_slot_although_others_keep_coming() -> None:
    batch = batcher(slots=Slots(1), max_num_seqs=2)
    rare = sequence("rare", 10, "b")
    ages = Counter({"popular": 1})
    batch.add(sequence("popular", 10, "a"))
    run(batch.schedule())
    batch.add(rare)

    # Each popular sequence lives two steps and another comes every step: the slot never falls idle by itself.
    steps = 0
    while rare not in batch.running:
        batch.add(sequence(f"popular-{steps}", 10, "a"))
        run(batch.schedule())
        ages.update(one.request_id for one in batch.running)
        for one in [one for one in batch.running if ages[one.request_id] == 2]:
            batch.remove(one)
        steps += 1
        assert steps < 2 * MAX_SLOT_WAIT_STEPS

    assert steps > MAX_SLOT_WAIT_STEPS


def test_a_sequence_joins_with_all_of_its_adapters_slots_or_with_none() -> None:
    slots = Slots(2, loaded={"a", "b"})
    batch = batcher(slots=slots)
    for name, adapters in [("1", "a+b"), ("2", "b+c"), ("3", "b")]:
        batch.add(sequence(name, 10, adapters))

    assert rows(batch.schedule()) == [("1", 10), ("3", 10)]
    assert slots.uses == {"a": 1, "b": 2}

    slots.loaded = None
    batch.schedule()  # c is loaded now, but both slots are in use
    assert slots.uses == {"a": 1, "b": 2}
    batch.remove(batch.running[0])
    batch.schedule()
    assert [one.request_id for one in batch.running] == ["3", "2"]
    assert slots.uses == {"a": 0, "b": 2, "c": 1}


def test_a_seated_sequence_knows_its_slots_scales_and_kv_identity() -> None:
    batch = batcher(slots=Slots(2))
    one, base = sequence("one", 10, "b+a"), sequence("base")
    batch.add(one)
    batch.add(base)
    batch.schedule()

    assert one.slots == (SlotScale(1, 0.5), SlotScale(0, 0.5))
    assert one.kv_identity == (("b", 0.5), ("a", 0.5))
    assert (base.slots, base.kv_identity) == ((), ())


def test_a_mix_gets_its_slots_although_its_members_rivals_keep_coming() -> None:
    batch = batcher(slots=Slots(2), max_num_seqs=4)
    rare = sequence("rare", 10, "c+d")
    ages: Counter[str] = Counter()

    # Two other adapters are always in use, by turns: both slots never fall idle at once by themselves.
    steps = 0
    while rare not in batch.running:
        if steps == 4:
            batch.add(rare)
        batch.add(sequence(f"popular-{steps}", 10, "ab"[steps % 2]))
        run(batch.schedule())
        ages.update(one.request_id for one in batch.running)
        for one in [one for one in batch.running if ages[one.request_id] == 3]:
            batch.remove(one)
        steps += 1
        assert steps < 2 * MAX_SLOT_WAIT_STEPS

    assert steps > MAX_SLOT_WAIT_STEPS


def test_a_newcomer_leaves_room_for_the_running_to_grow() -> None:
    batch = batcher(num_blocks=2)
    batch.add(sequence("running", 10))
    run(batch.schedule())
    batch.add(sequence("new", 10))

    assert rows(batch.schedule()) == [("running", 1)]


@pytest.mark.parametrize("num_blocks", [8, 11, 40])
@settings(max_examples=40, deadline=None)
@given(
    work=st.lists(
        st.tuples(st.integers(1, 100), st.integers(1, 28), st.sampled_from([None, *"abc", "a+b", "b+c"])),
        min_size=1,
        max_size=12,
    ),
    budget=st.integers(4, 64),
)
def test_everything_ends_however_tight_the_memory(
    num_blocks: int, work: list[tuple[int, int, str | None]], budget: int
) -> None:
    slots = Slots(2)
    batch = batcher(num_blocks, slots, max_num_seqs=4, budget=budget)
    goals = {}
    for index, (num_prompt_tokens, num_new_tokens, adapters) in enumerate(work):
        one = sequence(str(index), num_prompt_tokens, adapters)
        goals[one.request_id] = num_prompt_tokens + num_new_tokens
        batch.add(one)

    for _ in range(20_000):
        schedule = batch.schedule()
        assert sum(row.num_tokens for row in schedule.rows) <= budget
        run(schedule)
        for one in [row.sequence for row in schedule.rows]:
            if one.num_tokens >= goals[one.request_id]:
                batch.remove(one)
        batch._allocator.check(one.block_table for one in batch.sequences())
        if not len(batch):
            break

    assert len(batch) == 0
    assert not +slots.uses
