"""Whatever comes, in whatever order, and however tight the memory: every request runs to its end."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workers.engine.batches import BLOCK_SIZE, Slots
from tests.unit.workers.engine.batches import sequence as new_sequence
from workers.engine.core.sequence import SequenceState, Span
from workers.engine.kv.kv_cache import BlockAllocator
from workers.engine.kv.prefix_cache import PrefixCache
from workers.engine.scheduling.admission import MAX_SLOT_WAIT_STEPS
from workers.engine.scheduling.batching import Batcher, Schedule

MAX_NUM_SEQS = 4
MAX_LEN = 128


class Effects:
    """All adapters change keys and values, but for "c"."""

    def changes_kv(self, revision: str) -> bool:
        return revision != "c"


@dataclass(frozen=True, slots=True)
class Request:
    """What one request of a random load does."""

    arrives_at_step: int
    num_prompt_tokens: int
    stem: int  # prompts with one stem begin alike, as long as both go
    num_new_tokens: int
    adapters: str | None
    aborted_after_steps: int | None


REQUESTS = st.builds(
    Request,
    arrives_at_step=st.integers(0, 40),
    num_prompt_tokens=st.integers(1, 100),
    stem=st.integers(0, 1),
    num_new_tokens=st.integers(1, 28),
    adapters=st.sampled_from([None, *"abc", "a+b", "b+c"]),
    aborted_after_steps=st.none() | st.integers(0, 30),
)


class Load:
    """A batcher, its cache, and the requests that are in it."""

    def __init__(self, num_blocks: int, budget: int, *, with_prefixes: bool, look_ahead: int) -> None:
        self.slots = Slots(2)
        self.allocator = BlockAllocator(num_blocks + 1)
        prefixes = PrefixCache(self.allocator, Effects(), base="b", dtype="float32", block_size=BLOCK_SIZE)
        self.batch = Batcher(
            self.allocator,
            self.slots,
            block_size=BLOCK_SIZE,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=budget,
            prefixes=prefixes if with_prefixes else None,
        )
        self.budget = budget
        self.look_ahead = look_ahead
        self.in_flight: list[Span] | None = None  # a step's rows
        self.goals: dict[SequenceState, int] = {}
        self.aborts: dict[SequenceState, int] = {}

    def add(self, request_id: str, request: Request, step: int) -> None:
        tokens = [request.stem] * request.num_prompt_tokens
        one = new_sequence(request_id, adapters=request.adapters, token_ids=tokens)
        self.goals[one] = request.num_prompt_tokens + request.num_new_tokens
        # Every other one ends as if by a stop string: nobody knows before.
        one.max_total_tokens = self.goals[one] if request.num_new_tokens % 2 else MAX_LEN
        if request.aborted_after_steps is not None:
            self.aborts[one] = step + request.aborted_after_steps
        self.batch.add(one)

    @property
    def goes_on(self) -> bool:
        return len(self.batch) > 0 or self.in_flight is not None

    def step(self, step: int) -> None:
        """Run a step: the oldest sequence not about to end is computed, or a step in flight is settled."""
        schedule = self.batch.schedule()
        oldest = next((one for one in self.batch.running if not one.ends_with_pending), None)
        assert [row.sequence for row in schedule.rows[:1]] == [one for one in [oldest] if one is not None]
        assert schedule.rows or self.in_flight is not None
        assert sum(row.num_tokens for row in schedule.rows) <= self.budget
        launched = self._launch(schedule) if schedule.rows else None
        if self.in_flight is not None:
            self._settle(self.in_flight, step)
        self.in_flight = launched
        for place, span in enumerate(launched or []):
            if span.is_live and span.is_complete:
                span.sequence.pending_place = place
        if launched is not None and self.look_ahead == 0:
            self.in_flight = None
            self._settle(launched, step)
        self.batch.check()

    def _launch(self, schedule: Schedule) -> list[Span]:
        for one, num_tokens in schedule.rows:
            assert 0 < num_tokens <= one.num_unscheduled_tokens
            assert len(one.block_table) * BLOCK_SIZE >= one.num_scheduled_tokens + num_tokens
            assert one.num_scheduled_tokens + num_tokens < one.max_total_tokens
        spans = [Span(one, one.epoch, 0, num, one.num_scheduled_tokens) for one, num in schedule.rows]
        self.batch.launch(spans)
        return spans

    def _settle(self, spans: list[Span], step: int) -> None:
        self.batch.land(spans)
        for span in spans:
            one = span.sequence
            if one.pending_place is None or one.has_ended:
                continue
            one.pending_place = None
            if span.is_live:
                self.batch.confirm(one)
            one.token_ids.append(3)
        ended = [one for one in self.goals if one.num_tokens >= self.goals[one]]
        for one in ended + [one for one, at in self.aborts.items() if at <= step and one not in ended]:
            self.batch.remove(one)
            del self.goals[one]
            self.aborts.pop(one, None)


@pytest.mark.parametrize("look_ahead", [0, 1], ids="look-ahead-{}".format)
@pytest.mark.parametrize("with_prefixes", [True, False], ids=["prefix cache", "no prefix cache"])
@pytest.mark.parametrize("num_blocks", [8, 11, 40])
@settings(max_examples=40, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=12), budget=st.integers(MAX_NUM_SEQS, 64))
def test_every_step_computes_something_and_every_request_ends_in_bounded_steps(
    num_blocks: int, with_prefixes: bool, look_ahead: int, requests: list[Request], budget: int
) -> None:
    load = Load(num_blocks, budget, with_prefixes=with_prefixes, look_ahead=look_ahead)
    coming = sorted(enumerate(requests), key=lambda item: item[1].arrives_at_step)
    # The oldest running sequence gains a token a step at least, and the first in the queue comes next.
    bound = 40 + sum(request.num_prompt_tokens + request.num_new_tokens for request in requests)
    bound += look_ahead * (1 + 2 * len(requests))  # steps that only settle the last tokens of all

    step = 0
    while coming or load.goes_on:
        assert step < bound
        while coming and coming[0][1].arrives_at_step <= step:
            number, request = coming.pop(0)
            load.add(str(number), request, step)
        if load.goes_on:
            load.step(step)
        step += 1

    assert load.allocator.num_free == num_blocks
    assert not +load.slots.uses


@pytest.mark.parametrize("look_ahead", [0, 1], ids="look-ahead-{}".format)
@settings(max_examples=15, deadline=None)
@given(
    rare=st.tuples(st.integers(1, 100), st.sampled_from([None, *"abc", "b+d"])),
    popular=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 28)), min_size=1, max_size=5),
    num_blocks=st.sampled_from([8, 20]),
)
def test_nobody_starves_beside_traffic_that_never_ends(
    look_ahead: int, rare: tuple[int, str | None], popular: list[tuple[int, int]], num_blocks: int
) -> None:
    load = Load(num_blocks, 32, with_prefixes=True, look_ahead=look_ahead)
    step = 0
    while step < 11 or any(one.request_id == "rare" for one in load.goals):
        if step == 10:
            load.add("rare", Request(step, rare[0], 0, 5, rare[1], None), step)
        while len(load.batch.waiting) < 3:  # they fill both slots with two adapters
            length, num_new = popular[step % len(popular)]
            adapters = [None, "a", "c", "a"][step % 4]
            load.add("popular", Request(step, length, 1, num_new, adapters, None), step)
        load.step(step)
        step += 1
        # It is passed over in so many admissions, and a place falls free every 128 steps or sooner.
        assert step < MAX_SLOT_WAIT_STEPS * 128
