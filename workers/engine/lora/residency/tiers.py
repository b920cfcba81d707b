"""The two places a revision can be: host memory, and a slot as well; none has a slot alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from kernels.lora.tables import MAX_RANK, RANK_MULTIPLE, AdapterRow, LoRAModule, LoRATable
from kernels.registry import Kernels
from workers.engine.core.adapter_stats import AdapterCounters, AdapterStats
from workers.engine.core.errors import AllSlotsPinned
from workers.engine.lora.files.base import ModuleShape, Vocabulary
from workers.engine.lora.residency.adapter_memory import AdapterMemory, Done, HostMemory, Placed
from workers.engine.lora.residency.host_cache import HostCache
from workers.engine.lora.residency.residency_log import ResidencyLog
from workers.engine.lora.residency.slots import SlotTable
from workers.engine.lora.tables.adapter_weights import AdapterWeights, VocabularyWeights
from workers.engine.lora.tables.dora import DoraTerms
from workers.engine.lora.tables.packed_slots import PackedLayout, adapter_lora, module_name, packed_shapes
from workers.engine.lora.tables.vocabulary_slots import VocabularySlots


class Tiers:
    """Host cache, slots and the kernels' table, kept in step; moves are recorded and counted here only."""

    def __init__(
        self,
        shapes: Mapping[str, ModuleShape],
        layout: PackedLayout,
        *,
        num_slots: int,
        kernels: Kernels,
        max_rank: int = MAX_RANK,
        host_capacity: int,
        host_bytes: int | None,
        clock: Callable[[], float],
        vocabulary: Vocabulary | None = None,
        max_saved_bytes: int | None = None,
        dora: DoraTerms | None = None,
        memory: AdapterMemory | None = None,
        device: torch.device | str = "cpu",
        has_pin: Callable[[str], bool],
    ) -> None:
        """`memory` is where the device reads adapters, None for the host's; the table is on `device`.

        `dora` completes adapters with DoRA; without it and without `vocabulary` they must bring none.
        `has_pin` tells whether an owner has pinned a revision.
        """
        self.slots = SlotTable(num_slots, has_pin=has_pin)
        self.host = HostCache(
            host_capacity,
            max_bytes=host_bytes,
            max_saved_bytes=max_saved_bytes,
            is_busy=self.slots.is_busy,
            is_pinned=self.slots.is_pinned,
            clock=clock,
        )
        self.residency = ResidencyLog()
        self.counters = AdapterCounters()
        self._table = LoRATable(
            packed_shapes(shapes, layout, kernels.dtype, vocabulary),
            num_slots,
            max_rank=min(MAX_RANK, -(-max_rank // RANK_MULTIPLE) * RANK_MULTIPLE),
            device=str(device),
        )
        self._memory: AdapterMemory = memory or HostMemory()
        self._arriving: dict[str, tuple[int, Placed]] = {}  # slot and place by revision
        self._unused: set[str] = set()  # brought to the device, and not yet used there
        self._kept: set[str] = set()  # for those who were passed over in this step
        self._rows: dict[str, AdapterRow] = {}  # by revision, as long as it is on the host
        self._sizes: dict[str, int] = {}  # the same: its bytes on the device
        self.vocabulary = None if vocabulary is None else VocabularySlots(self._table, kernels)
        self._dora = dora

    def __contains__(self, revision: str) -> bool:
        return revision in self.host

    def table(self, layer: int, module: str) -> LoRAModule:
        """Return what a layer's module reads of every slot."""
        return self._table.module(module_name(layer, module))

    def use_all(self, revisions: Sequence[str]) -> list[int] | None:
        """Count one more sequence on the slot of each of these host revisions.

        Without places for all of them, or while one is still on its way to the device, none is taken and the
        answer is None: sequences that each held a part of what they need would wait for each other forever.
        What they have already is then kept from whoever asks later, until the next `take_in`.
        """
        if not self.slots.can_hold(revisions, self._kept):
            return None
        for revision in revisions:
            if revision in self.slots:  # first: the newcomers must not take their slots
                self.touch(revision)
        is_all_there = self._bring_all(revisions)
        if not is_all_there:
            self._kept.update(revisions)
            return None
        return [self._use(revision) for revision in revisions]

    def _bring_all(self, revisions: Sequence[str]) -> bool:
        """See that all have places; whether all can be used now."""
        missing = [revision for revision in revisions if revision not in self.slots]
        self._unused.update(missing)
        keep = self._kept | set(revisions)
        lacking = [revision for revision in missing if not self.activate(revision, keep)]
        if lacking and not self.slots.num_underway and not self._kept:
            # Nobody runs or arrives who could make room: what is in the way is their own, badly placed.
            while (idle := self.slots.idle()) is not None:
                self._left_slot(idle)
            missing = [revision for revision in revisions if revision not in self.slots]
            self._unused.update(missing)
            lacking = [revision for revision in missing if not self.activate(revision, keep)]
            if lacking:
                raise AllSlotsPinned(
                    f"no room on the device for {', '.join(lacking)}: pinned adapters leave gaps too small "
                    "for it; unpin one, or raise lora_pool_bytes"
                )
        return not lacking and not any(self.slots.is_arriving(revision) for revision in revisions)

    def _use(self, revision: str) -> int:
        if revision in self._unused:
            self._unused.discard(revision)
        else:
            self.counters.hit(revision)
        self.host.use(revision)
        return self.slots.use(revision)

    def activate(self, revision: str, keep: Collection[str] = ()) -> bool:
        """Give a host revision a slot and bring its weights to the device; False while there is no place.

        None of those to `keep` makes room. AllSlotsPinned if all slots are.
        """
        assignment = self.slots.assign(revision, keep)
        if assignment is None:
            return False
        if assignment.evicted is not None:
            self._left_device(assignment.evicted)
        weights, row = self.host.use(revision), self._rows[revision]
        while (placed := self._memory.bring(revision, weights, row)) is None:
            idle = self.slots.idle({revision, *keep})
            if idle is None:
                self._clear(self.slots.free(revision))
                return False
            self._left_slot(idle)
        self._arriving[revision] = assignment.slot, placed
        self.slots.set_arriving(revision, True)
        if isinstance(placed.copy, Done):
            self._arrived(revision)
        return True

    def take_in(self) -> None:
        """Let what has reached the device be used, and what was kept for those who waited be given away."""
        self._kept.clear()
        for revision in [one for one, (_, placed) in self._arriving.items() if placed.copy.is_done]:
            self._arrived(revision)

    def await_arrival(self, revision: str) -> None:
        """Wait for a revision's weights if they are on their way."""
        arriving = self._arriving.get(revision)
        if arriving is not None:
            arriving[1].copy.wait()
            self._arrived(revision)

    def shortage(self, revisions: Sequence[str]) -> str | None:
        """Say why these can never be on the device together; None if they can."""
        most, needed = self._memory.num_bytes, sum(self._sizes[revision] for revision in set(revisions))
        if most is None or needed <= most:
            return None
        return f"together they take {needed} bytes on the device, but lora_pool_bytes is {most}"

    def close(self) -> None:
        """Stop copying."""
        self._memory.close()

    def _arrived(self, revision: str) -> None:
        slot, placed = self._arriving.pop(revision)
        self.slots.set_arriving(revision, False)
        self._table.point(slot, placed.row)
        if self.vocabulary is not None:
            self.vocabulary.point(slot, placed.vocabulary)
        self.residency.record(revision, "device")

    def _left_slot(self, revision: str) -> None:
        """Take an idle revision out of its slot; it stays on the host."""
        self._clear(self.slots.free(revision))
        self._left_device(revision)

    def _clear(self, slot: int) -> None:
        """Leave nothing in a slot that nobody has."""
        self._table.clear(slot)
        if self.vocabulary is not None:
            self.vocabulary.point(slot, VocabularyWeights())

    def _left_device(self, revision: str) -> None:
        self._memory.drop(revision)
        self._unused.discard(revision)
        self.counters.slot_evictions += 1
        self.residency.record(revision, "host")

    def touch(self, revision: str) -> None:
        """Make a revision that has a slot the most recently used."""
        self.host.use(revision)
        self.slots.touch(revision)

    def admit(self, weights: AdapterWeights, *, even_wanted: bool = False) -> list[str] | None:
        """Keep a loaded revision on the host; returns which left for it, or None if there is no room."""
        if not self.host.can_put(weights, even_wanted=even_wanted):
            return None
        if self._dora is not None:
            weights = self._dora.complete(weights)
        row = self._table.describe(adapter_lora(weights.modules, weights.vocabulary.packed))
        leaving = self.host.put(weights, even_wanted=even_wanted)
        if leaving is None:
            return None
        self._rows[weights.digest] = row
        self._sizes[weights.digest] = self._memory.size_of(weights)
        for revision in leaving:
            self.counters.evicted(revision)
            self._left_host(revision)
        self.residency.record(weights.digest, "host")
        return leaving

    def drop(self, revision: str) -> None:
        """Take a revision that nobody uses out of slot and host, once it is no longer being copied."""
        self.await_arrival(revision)
        self.host.drop(revision)
        self._left_host(revision)

    def stats(self, *, num_loading: int) -> AdapterStats:
        """Return the counts so far, with what is held now."""
        return self.counters.freeze(
            num_on_device=len(self.slots),
            num_on_host=len(self.host),
            host_bytes=self.host.num_bytes,
            saved_module_bytes=self.host.saved_bytes,
            num_loading=num_loading,
        )

    def _left_host(self, revision: str) -> None:
        if revision in self.slots:
            self._clear(self.slots.free(revision))
            self._memory.drop(revision)
            self._unused.discard(revision)
        del self._rows[revision], self._sizes[revision]
        self.residency.record(revision, "none")
