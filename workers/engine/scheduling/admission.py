"""Decides which waiting sequences have what they need to begin: a compiled grammar and adapter slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from workers.engine.core.composition import AcquiredSlot, Composition
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.sequence import SequenceState

MAX_SLOT_WAIT_STEPS = 64
"""Steps for which a loaded adapter may be passed over for want of a slot."""


class AdapterSlots(Protocol):
    """The part of the adapter manager that admission needs."""

    def acquire_all(self, requests: Sequence[LoRARequest]) -> tuple[AcquiredSlot, ...] | None:
        """Return all adapters' slots, in use by one sequence more, or None and none used while one lacks."""
        ...

    def release(self, request: LoRARequest) -> None:
        """Give up one use of the adapter's slot."""
        ...

    def is_loaded(self, request: LoRARequest) -> bool:
        """Whether the adapter is in memory, so that it lacks nothing but a place."""
        ...


class Admission:
    """One pass over the waiting sequences: who gets its adapters' slots, all of them or none.

    A sequence whose grammar is being compiled or whose adapters are loading is passed over. One that only
    lacks free slots is passed over as well, but not forever: after `MAX_SLOT_WAIT_STEPS` no younger adapter
    request may join, so that the slots in use run empty and enough become free.
    """

    def __init__(self, adapters: AdapterSlots | None) -> None:
        self._adapters = adapters
        self._not_ready: set[Composition] = set()
        self._is_closed = False

    def may_begin(self, sequence: SequenceState) -> bool:
        """Whether the sequence lacks nothing but cache blocks; its adapters' slots are then in use by it.

        Raises the AdapterError or RequestError for which it can never run.
        """
        has_grammar = sequence.grammar is None or sequence.grammar.is_ready()
        return has_grammar and self._take_slots(sequence)

    def _take_slots(self, sequence: SequenceState) -> bool:
        if sequence.has_slots:
            return True
        if self._is_closed or sequence.composition in self._not_ready:
            return False
        assert self._adapters is not None, "a request with an adapter was let in without LoRA"
        acquired = self._adapters.acquire_all([member.lora for member in sequence.composition])
        if acquired is None:
            self._pass_over(self._adapters, sequence)
            return False
        sequence.take_slots(acquired)
        sequence.num_slot_waits = 0
        return True

    def _pass_over(self, adapters: AdapterSlots, sequence: SequenceState) -> None:
        self._not_ready.add(sequence.composition)
        if all(adapters.is_loaded(member.lora) for member in sequence.composition):
            sequence.num_slot_waits += 1
            self._is_closed = sequence.num_slot_waits > MAX_SLOT_WAIT_STEPS
