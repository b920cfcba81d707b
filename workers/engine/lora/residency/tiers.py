"""The two places a revision can be: host memory, and a slot as well; none has a slot alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kernels.lora.tables import MAX_RANK, RANK_MULTIPLE, AdapterRow, LoRAModule, LoRATable
from kernels.registry import Kernels
from workers.engine.core.adapter_stats import AdapterCounters, AdapterStats
from workers.engine.lora.files.base import ModuleShape, Vocabulary
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
    ) -> None:
        """`dora` completes adapters with DoRA; without it and without `vocabulary` they must bring none."""
        self.slots = SlotTable(num_slots)
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
        )
        self._rows: dict[str, AdapterRow] = {}  # by revision, as long as it is on the host
        self.vocabulary = None if vocabulary is None else VocabularySlots(self._table, kernels)
        self._dora = dora

    def __contains__(self, revision: str) -> bool:
        return revision in self.host

    def table(self, layer: int, module: str) -> LoRAModule:
        """Return what a layer's module reads of every slot."""
        return self._table.module(module_name(layer, module))

    def use_all(self, revisions: Sequence[str]) -> list[int] | None:
        """Count one more sequence on the slot of each of these host revisions.

        Without slots for all of them none is taken and the answer is None: sequences that each held a part
        of what they need would wait for each other forever.
        """
        if not self.slots.can_hold(revisions):
            return None
        for revision in revisions:
            if revision in self.slots:  # counted first: the newcomers must not take their slots
                self.counters.hit(revision)
                self.touch(revision)
        return [self._use(revision) for revision in revisions]

    def _use(self, revision: str) -> int:
        if revision not in self.slots:
            self.activate(revision)
        self.host.use(revision)
        return self.slots.use(revision)

    def activate(self, revision: str) -> bool:
        """Give a host revision a slot; False while every slot is in use, AllSlotsPinned if all are pinned."""
        assignment = self.slots.assign(revision)
        if assignment is None:
            return False
        if assignment.evicted is not None:
            self.counters.slot_evictions += 1
            self.residency.record(assignment.evicted, "host")
        weights = self.host.use(revision)
        self._table.point(assignment.slot, self._rows[revision])
        if self.vocabulary is not None:
            self.vocabulary.point(assignment.slot, weights.vocabulary)
        self.residency.record(revision, "device")
        return True

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
        for revision in leaving:
            self.counters.evicted(revision)
            self._left_host(revision)
        self.residency.record(weights.digest, "host")
        return leaving

    def drop(self, revision: str) -> None:
        """Take a revision that nobody uses out of slot and host."""
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
            slot = self.slots.free(revision)
            self._table.clear(slot)
            if self.vocabulary is not None:
                self.vocabulary.point(slot, VocabularyWeights())
        del self._rows[revision]
        self.residency.record(revision, "none")
