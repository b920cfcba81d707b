"""Who joins the next step, who waits, who gives way; no model is needed to see it."""

from __future__ import annotations

from collections import Counter

from kernels.lora.segments import SlotScale
from tests.unit.workers.engine.batches import BLOCK_SIZE, Slots, batcher, rows, run, sequence
from workers.engine.scheduling.admission import MAX_SLOT_WAIT_STEPS


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


def test_behaviour_25_a_loaded_adapter_gets_its_slot_although_others_keep_coming() -> None:
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


def test_behaviour_17_a_sequence_joins_with_all_of_its_adapters_slots_or_with_none() -> None:
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


def test_behaviour_24_the_base_and_the_resident_adapter_run_beside_one_that_waits_for_the_slot() -> None:
    batch = batcher(slots=Slots(1))
    for name, adapters in [("first", "a"), ("other", "b"), ("base", None), ("resident", "a")]:
        batch.add(sequence(name, 10, adapters))

    assert rows(batch.schedule()) == [("first", 10), ("base", 10), ("resident", 10)]
    assert [one.request_id for one in batch.waiting] == ["other"]
    for one in list(batch.running):
        batch.remove(one)
    assert rows(batch.schedule()) == [("other", 10)]


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_write() -> None:
    batch = batcher(budget=20)
    batch.add(sequence("writes", 10))
    run(batch.schedule())
    batch.add(sequence("long", 90))

    seen = []
    for _ in range(6):
        schedule = batch.schedule()
        seen.append(rows(schedule))
        run(schedule)

    assert seen == [[("writes", 1), ("long", 19)]] * 4 + [
        [("writes", 1), ("long", 14)],
        [("writes", 1), ("long", 1)],
    ]
