"""Decides which tokens of which sequences the next step computes: continuous batching over a paged cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from workers.engine.core.errors import AdapterError, EngineError, RequestError
from workers.engine.core.sequence import SequenceState, Span
from workers.engine.kv.kv_cache import BlockAllocator
from workers.engine.kv.prefix_cache import PrefixCache
from workers.engine.scheduling.admission import AdapterSlots, Admission


class ScheduledRows(NamedTuple):
    """The next `num_tokens` uncomputed tokens of one sequence."""

    sequence: SequenceState
    num_tokens: int


class Refusal(NamedTuple):
    """A waiting sequence whose adapter turned out unusable."""

    sequence: SequenceState
    error: EngineError


class Schedule(NamedTuple):
    """One step's work; `fresh_blocks` were just allocated and hold leftovers."""

    rows: list[ScheduledRows]
    fresh_blocks: list[int]
    refusals: list[Refusal]


class Batcher:
    """Holds the waiting and the running sequences and forms steps from them.

    Running sequences come first, oldest first; when blocks run out, the youngest running one gives its
    own back and starts over later.

    No one can wait in a circle. A running sequence waits for nothing but a step in flight: it takes blocks
    from the youngest, and the oldest is a victim only when it is alone; then all blocks are its own, and one
    sequence of maximal length fits. Each schedule thus computes something of the oldest one, or leaves it
    out because the step in flight ends it. A waiting sequence holds slots at most, never a block: it waits
    for running ones to give back blocks or to finish a prompt that begins like its own, or for sequences
    that hold slots, and steps in flight, to give back slots. A step in flight waits for nobody, and is
    settled before the schedule after the next one. With nothing running, all blocks are free (cached ones
    without users are) and none is underway, so that the first sequence with its slots joins; with no slots
    held and nothing in flight either, all slots are free.

    Blocks are given out again at once, even while a step in flight writes them: whoever gets them writes
    later, for the device runs its steps in order. Slots, whose adapters the host may move, wait for it.

    No one waits forever: the queue is served in order, what gave way goes back to its head, and passed over
    are only those whose adapters are not there, so many times at most (`Admission`), and those whose next
    blocks are underway: they find more each time, or are the next to compute them.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        adapters: AdapterSlots | None,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """`prefixes` is None if no sequence may begin with what others have computed."""
        self._allocator = allocator
        self._adapters = adapters
        self._prefixes = prefixes
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.num_preemptions = 0
        self._leaving: list[SequenceState] = []  # without blocks, but steps in flight still use their slots
        self._uncleared: list[int] = []  # fresh blocks of schedules that were not launched

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, sequence: SequenceState) -> None:
        """Queue a new sequence behind the others."""
        self.waiting.append(sequence)

    def sequences(self) -> Iterator[SequenceState]:
        """Iterate over all sequences that hold blocks or slots or wait for them, running ones first."""
        yield from self.running
        yield from self.waiting
        yield from self._leaving

    def remove(self, sequence: SequenceState) -> None:
        """Forget a sequence that ended, wherever it is, and free what it used."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        sequence.has_ended = True
        self._give_up_resources(sequence)
        if not len(self):
            self._allocator.check_idle()

    def launch(self, spans: Sequence[Span]) -> None:
        """Note that the step last scheduled has been launched, with these rows."""
        self._uncleared = []
        for span in spans:
            span.sequence.num_in_flight_tokens += span.num_rows
            span.sequence.num_steps_in_flight += 1

    def land(self, spans: Sequence[Span]) -> None:
        """Note that a step in flight is done; rows that are no longer their sequence's count for nothing."""
        for sequence, epoch, _, num_rows, _ in spans:
            sequence.num_steps_in_flight -= 1
            if sequence.epoch == epoch:
                sequence.num_in_flight_tokens -= num_rows
                sequence.num_computed_tokens += num_rows
        self._release_left_slots()

    def recall(self) -> None:
        """Undo every `launch` whose results are lost; the rows are to be computed by another step.

        Counts are set, not taken back: what interrupted the engine may have come between any two of them.
        """
        for sequence in self.sequences():
            sequence.num_steps_in_flight = sequence.num_in_flight_tokens = 0
            sequence.pending_place = None
            # Its last row may have landed without the token that it chooses, or without what it says of
            # the prompt: the row is computed once more, and chooses the same.
            num_kept = sequence.num_tokens - 1
            if sequence.prompt_logprobs is not None:
                num_noted = len(sequence.prompt_logprobs)
                num_kept = num_noted if num_noted < sequence.num_prompt_tokens - 1 else num_kept
            sequence.num_computed_tokens = min(sequence.num_computed_tokens, num_kept)
        self._release_left_slots()

    def confirm(self, sequence: SequenceState) -> None:
        """Note that a sequence's latest logits are finite, so that what it computed may serve others."""
        if self._prefixes is not None:
            self._prefixes.publish(sequence)

    def disown(self, sequence: SequenceState) -> None:
        """Note that a sequence's logits are not finite, so that nothing it computed may serve others."""
        if self._prefixes is not None:
            self._prefixes.retract(sequence)

    def check(self) -> None:
        """Assert that every block is accounted for."""
        self._allocator.check(sequence.block_table for sequence in self.sequences())
        if self._prefixes is not None:
            self._prefixes.check(self.running)

    def schedule(self) -> Schedule:
        """Form the next step: every running sequence goes on, then waiting ones join while there is room."""
        schedule = Schedule([], list(self._uncleared), [])
        num_preemptions = self.num_preemptions
        budget = self._continue_running(schedule)
        # What was just preempted would otherwise come straight back for the same blocks.
        if self.num_preemptions == num_preemptions:
            self._admit_waiting(schedule, budget)
        self._uncleared = schedule.fresh_blocks
        return schedule

    def _continue_running(self, schedule: Schedule) -> int:
        budget, index = self._max_num_batched_tokens, 0
        # The list shrinks from its young end while older sequences take their blocks.
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            if sequence.ends_with_pending:
                index += 1
                continue
            num_tokens = min(sequence.num_unscheduled_tokens, budget)
            # Most decode steps fill a block that is there already; this runs for every sequence and step.
            if self._num_missing_blocks(sequence, num_tokens):
                if not self._make_room(sequence, num_tokens):
                    break
                schedule.fresh_blocks.extend(self._allocate(sequence, num_tokens))
            schedule.rows.append(ScheduledRows(sequence, num_tokens))
            budget -= num_tokens
            index += 1
        return budget

    def _make_room(self, sequence: SequenceState, num_tokens: int) -> bool:
        """Preempt the youngest until the blocks suffice; False when `sequence` itself had to go."""
        while not self._allocator.can_allocate(self._num_missing_blocks(sequence, num_tokens)):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._give_up_resources(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit_waiting(self, schedule: Schedule, budget: int) -> None:
        if not self.waiting or budget <= 0 or len(self.running) >= self._max_num_seqs:
            return
        admission = Admission(self._adapters)
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self._max_num_seqs:
                break
            if sequence.num_steps_in_flight:
                break  # preempted just now: it comes back when its token is here
            try:
                is_ready = admission.may_begin(sequence)
            except (AdapterError, RequestError) as error:
                self.waiting.remove(sequence)
                sequence.has_ended = True
                schedule.refusals.append(Refusal(sequence, error))
                continue
            if not is_ready:
                continue
            found = self._prefixes.find(sequence) if self._prefixes is not None else []
            if self._prefixes is not None and self._prefixes.is_worth_awaiting(sequence, found):
                continue
            if not self._can_admit(sequence, found):
                break  # in order: a short prompt must not overtake a long one forever
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if self._prefixes is not None:
                self._prefixes.adopt(sequence, found)
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            schedule.fresh_blocks.extend(self._allocate(sequence, sequence.num_uncomputed_tokens))
            schedule.rows.append(ScheduledRows(sequence, num_tokens))
            budget -= num_tokens

    def _can_admit(self, sequence: SequenceState, found: list[int]) -> bool:
        # Found blocks need not be allocated, but those that are idle count as free until they are shared.
        num_saved = len(found) - self._allocator.num_idle_among(found)
        num_needed = self._num_missing_blocks(sequence, sequence.num_uncomputed_tokens) - num_saved
        # One block of growth for each running sequence: else the newcomer is preempted at once.
        return self._allocator.can_allocate(num_needed + len(self.running))

    def _num_missing_blocks(self, sequence: SequenceState, num_tokens: int) -> int:
        num_blocks = -(-(sequence.num_scheduled_tokens + num_tokens) // self._block_size)
        return max(0, num_blocks - len(sequence.block_table))

    def _allocate(self, sequence: SequenceState, num_tokens: int) -> list[int]:
        blocks = self._allocator.allocate(self._num_missing_blocks(sequence, num_tokens))
        sequence.block_table.extend(blocks)
        return blocks

    def _give_up_resources(self, sequence: SequenceState) -> None:
        if self._prefixes is not None:
            self._prefixes.let_go(sequence)
        self._allocator.release(sequence.block_table)
        sequence.block_table.clear()
        sequence.num_computed_tokens = sequence.num_adopted_blocks = sequence.num_published_blocks = 0
        sequence.num_in_flight_tokens = 0
        sequence.epoch += 1
        if not sequence.slots:
            return
        sequence.slots = ()
        if sequence.num_steps_in_flight:
            self._leaving.append(sequence)
        else:
            self._release_slots(sequence)

    def _release_slots(self, sequence: SequenceState) -> None:
        if self._adapters is not None:
            for member in sequence.composition:
                self._adapters.release(member.lora)

    def _release_left_slots(self) -> None:
        if not self._leaving:
            return
        for sequence in [one for one in self._leaving if not one.num_steps_in_flight]:
            self._leaving.remove(sequence)
            self._release_slots(sequence)
