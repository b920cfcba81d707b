"""Decides which tokens of which sequences the next step computes: continuous batching over a paged cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from kernels.segments import SlotScale
from workers.engine.errors import AdapterError
from workers.engine.kv_cache import BlockAllocator
from workers.engine.lora.request import LoRARequest
from workers.engine.sequence import Sequence

MAX_SLOT_WAIT_STEPS = 64
"""Steps for which a loaded adapter may be passed over for want of a slot."""


class AdapterSlots(Protocol):
    """The part of the adapter manager that admission needs."""

    def acquire(self, request: LoRARequest) -> int | None:
        """Return the adapter's slot, now in use by one sequence more, or None while it is not ready."""
        ...

    def release(self, request: LoRARequest) -> None:
        """Give up one use of the adapter's slot."""
        ...

    def revision_of(self, request: LoRARequest) -> str | None:
        """Return the adapter's content digest, once known."""
        ...

    def tier_of(self, revision: str) -> str:
        """Return "none", "host" or "device"."""
        ...


class ScheduledRows(NamedTuple):
    """The next `num_tokens` uncomputed tokens of one sequence."""

    sequence: Sequence
    num_tokens: int


class Refusal(NamedTuple):
    """A waiting sequence whose adapter turned out unusable."""

    sequence: Sequence
    error: AdapterError


class Schedule(NamedTuple):
    """One step's work; `fresh_blocks` were just allocated and hold leftovers."""

    rows: list[ScheduledRows]
    fresh_blocks: list[int]
    refusals: list[Refusal]


class Batcher:
    """Holds the waiting and the running sequences and forms steps from them.

    Running sequences come first, oldest first; when blocks run out, the youngest running one gives its
    own back and starts over later. The oldest sequence can therefore always finish, and since one
    sequence of maximal length fits the cache, so can every other after it.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        adapters: AdapterSlots | None,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self._allocator = allocator
        self._adapters = adapters
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind the others."""
        self.waiting.append(sequence)

    def sequences(self) -> Iterator[Sequence]:
        """Iterate over all sequences held, running ones first."""
        yield from self.running
        yield from self.waiting

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, wherever it is, and free what it used."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._give_up_resources(sequence)

    def schedule(self) -> Schedule:
        """Form the next step: every running sequence goes on, then waiting ones join while there is room."""
        schedule = Schedule([], [], [])
        num_preemptions = self.num_preemptions
        budget = self._continue_running(schedule)
        # What was just preempted would otherwise come straight back for the same blocks.
        if self.num_preemptions == num_preemptions:
            self._admit_waiting(schedule, budget)
        return schedule

    def _continue_running(self, schedule: Schedule) -> int:
        budget, index = self._max_num_batched_tokens, 0
        # The list shrinks from its young end while older sequences take their blocks.
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            # Most decode steps fill a block that is there already; this runs for every sequence and step.
            if self._num_missing_blocks(sequence, num_tokens):
                if not self._make_room(sequence, num_tokens):
                    break
                schedule.fresh_blocks.extend(self._allocate(sequence, num_tokens))
            schedule.rows.append(ScheduledRows(sequence, num_tokens))
            budget -= num_tokens
            index += 1
        return budget

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Preempt the youngest until the blocks suffice; False when `sequence` itself had to go."""
        while not self._allocator.can_allocate(self._num_missing_blocks(sequence, num_tokens)):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_up_resources(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit_waiting(self, schedule: Schedule, budget: int) -> None:
        if not self.waiting or budget <= 0 or len(self.running) >= self._max_num_seqs:
            return
        admission = _Admission(self._adapters)
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self._max_num_seqs:
                break
            try:
                is_ready = admission.take_slot(sequence)
            except AdapterError as error:
                self.waiting.remove(sequence)
                schedule.refusals.append(Refusal(sequence, error))
                continue
            if not is_ready:
                continue
            if not self._can_admit(sequence):
                break  # in order: a short prompt must not overtake a long one for ever
            self.waiting.remove(sequence)
            self.running.append(sequence)
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            schedule.fresh_blocks.extend(self._allocate(sequence, sequence.num_uncomputed_tokens))
            schedule.rows.append(ScheduledRows(sequence, num_tokens))
            budget -= num_tokens

    def _can_admit(self, sequence: Sequence) -> bool:
        # One block of growth for each running sequence: else the newcomer is preempted at once.
        num_needed = self._num_missing_blocks(sequence, sequence.num_uncomputed_tokens)
        return self._allocator.can_allocate(num_needed + len(self.running))

    def _num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        num_blocks = -(-(sequence.num_computed_tokens + num_tokens) // self._block_size)
        return max(0, num_blocks - len(sequence.block_table))

    def _allocate(self, sequence: Sequence, num_tokens: int) -> list[int]:
        blocks = self._allocator.allocate(self._num_missing_blocks(sequence, num_tokens))
        sequence.block_table.extend(blocks)
        return blocks

    def _give_up_resources(self, sequence: Sequence) -> None:
        self._allocator.release(sequence.block_table)
        sequence.block_table.clear()
        sequence.num_computed_tokens = 0
        if sequence.slots and sequence.lora is not None and self._adapters is not None:
            self._adapters.release(sequence.lora)
            sequence.slots = ()


class _Admission:
    """One pass over the waiting sequences: who gets an adapter slot.

    A sequence whose adapter is still loading is passed over. One that only lacks a free slot is passed
    over as well, but not for ever: after `MAX_SLOT_WAIT_STEPS` no younger adapter request may join, so
    that the slots in use run empty and one becomes free.
    """

    def __init__(self, adapters: AdapterSlots | None) -> None:
        self._adapters = adapters
        self._not_ready: set[LoRARequest] = set()
        self._is_closed = False

    def take_slot(self, sequence: Sequence) -> bool:
        """Whether the sequence may join; its adapter's slot is then in use by it."""
        if sequence.lora is None or sequence.slots:
            return True
        if self._is_closed or sequence.lora in self._not_ready:
            return False
        assert self._adapters is not None, "a request with an adapter was let in without LoRA"
        slot = self._adapters.acquire(sequence.lora)
        if slot is None:
            self._pass_over(self._adapters, sequence, sequence.lora)
            return False
        sequence.slots, sequence.num_slot_waits = (SlotScale(slot),), 0
        return True

    def _pass_over(self, adapters: AdapterSlots, sequence: Sequence, lora: LoRARequest) -> None:
        self._not_ready.add(lora)
        revision = adapters.revision_of(lora)
        if revision is not None and adapters.tier_of(revision) == "host":
            sequence.num_slot_waits += 1
            self._is_closed = sequence.num_slot_waits > MAX_SLOT_WAIT_STEPS
