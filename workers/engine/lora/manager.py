"""Adapters between disk, host memory and slots, as the engine and its owner ask for them."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
import torch

from kernels.lora_slots import PackedModuleSlots
from workers.engine.errors import AdapterInUse, AdapterTooLarge, AllSlotsPinned, ConfigError
from workers.engine.lora.base import BaseDescription, ModuleShape, Vocabulary
from workers.engine.lora.composition import Seat
from workers.engine.lora.dora import DoraTerms
from workers.engine.lora.host_cache import WANTED_S
from workers.engine.lora.identities import Identities
from workers.engine.lora.loader import LoadResult
from workers.engine.lora.loads import Loads
from workers.engine.lora.packed_slots import PackedLayout
from workers.engine.lora.request import LoRARequest
from workers.engine.lora.residency import ResidencyChange, Tier
from workers.engine.lora.seating import Seating
from workers.engine.lora.stats import AdapterStats, RevisionStats
from workers.engine.lora.tiers import Tiers
from workers.engine.lora.validate import check_adapter
from workers.engine.lora.vocabulary_slots import VocabularySlots
from workers.engine.lora.weights import AdapterWeights, pack_adapter

__all__ = ["LoRAManager", "ModuleShape"]

log = structlog.get_logger(__name__)


class LoRAManager:
    """Host cache and slots of one engine; every method is for the engine's own thread."""

    def __init__(
        self,
        shapes: Mapping[str, ModuleShape],
        *,
        layout: PackedLayout,
        num_layers: int,
        max_loras: int,
        max_cpu_loras: int | None,
        max_lora_rank: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        base_name: str = "",
        vocabulary: Vocabulary | None = None,
        target_modules: Sequence[str] | None = None,
        max_saved_module_bytes: int | None = None,
        dora: DoraTerms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shapes` are the base's linear layers by module path; an empty `base_name` means unknown.

        `layout` says which of them are packed together. `target_modules` are those that adapters may change,
        None for all. Without `vocabulary` adapters cannot change embedding and head, without `dora` they
        cannot have DoRA.
        """
        host_capacity = max_loras if max_cpu_loras is None else max_cpu_loras
        _check_limits(max_loras, host_capacity, max_lora_rank, torch.device(device))
        self._base = BaseDescription(base_name, num_layers, shapes, layout, vocabulary)
        self._target_modules = target_modules
        self._max_saved_module_bytes = max_saved_module_bytes
        self._max_lora_rank = max_lora_rank
        self._dtype = dtype
        self._layout = layout
        self._tiers = Tiers(
            shapes,
            self._layout,
            num_slots=max_loras,
            host_capacity=host_capacity,
            clock=clock,
            vocabulary=vocabulary,
            max_saved_bytes=max_saved_module_bytes,
            dora=dora,
        )
        self._clock = clock
        self._loads = Loads(self._load, clock=clock)
        self._identities = Identities()
        self._seating = Seating(self._tiers, self._identities, self._loads, self._start_if_room)

    # What the engine asks for its sequences

    def acquire(self, request: LoRARequest) -> int | None:
        """Return one adapter's slot; see `acquire_all`."""
        seats = self.acquire_all([request])
        return None if seats is None else seats[0].slot

    def acquire_all(self, requests: Sequence[LoRARequest]) -> tuple[Seat, ...] | None:
        """Return the adapters' seats, all now counted in use; None, and none counted, while one lacks.

        Ask again next step then. Raises the AdapterError for which an adapter cannot be served, or the
        RequestError for which these cannot be served together.
        """
        self._collect()
        return self._seating.take(requests)

    def is_loaded(self, request: LoRARequest) -> bool:
        """Tell whether an adapter is in memory and lacks nothing but a place on the host or a slot."""
        return self._seating.is_loaded(request)

    def release(self, request: LoRARequest) -> None:
        """Count one sequence less on the adapter; call it once for each acquisition that gave a slot."""
        self._seating.give_back(request)

    def prefetch(self, request: LoRARequest) -> None:
        """Start loading an adapter into host memory if there is a place; `acquire` tells if that failed."""
        self._collect()
        revision = self._identities.revision_of(request)
        if revision is not None and revision in self._tiers:
            self._tiers.host.want(revision)
            return
        self._loads.forget_retryable(request)
        if not self._loads.has_failed(request):
            self._start_if_room(request)

    def count_non_finite(self, request: LoRARequest) -> None:
        """Note that a request with this adapter ended in NaN or infinity."""
        revision = self._identities.revision_of(request)
        if revision is not None:
            self._tiers.counters.non_finite(revision)

    def revision_of(self, request: LoRARequest) -> str | None:
        """Return the digest a request means, once known; it is known when `acquire` has given a slot."""
        return self._identities.revision_of(request)

    def changes_kv(self, revision: str) -> bool:
        """Whether a revision on the host can change any key or value of the model."""
        return self._tiers.host.peek(revision).changes_kv

    def take_uncharged(self, request: LoRARequest) -> RevisionStats:
        """Return the adapter's counts since the last call; call it while the request holds its slot."""
        revision = self._identities.revision_of(request)
        return RevisionStats() if revision is None else self._tiers.counters.take_uncharged(revision)

    def packed(self, layer: int, module: str) -> PackedModuleSlots:
        """Return a packed module's slot table for `kernels.lora`; the same object for the engine's life."""
        return self._tiers.table(layer, module)

    @property
    def vocabulary(self) -> VocabularySlots | None:
        """What the slots' adapters do to embedding and head; None where they cannot."""
        return self._tiers.vocabulary

    # What the engine's owner asks

    def add(self, request: LoRARequest) -> bool:
        """Load an adapter now and give it a slot if one is idle; False if it had one. Waits for the disk."""
        self._collect()
        revision = self._identities.revision_of(request)
        if revision is None or revision not in self._tiers:
            revision = self._load_now(request)
        self._identities.register(request.lora_int_id, revision)
        if revision in self._tiers.slots:
            self._tiers.touch(revision)
            return False
        self._tiers.activate(revision)
        return True

    def remove(self, lora_int_id: int) -> bool:
        """Drop an adapter from slot and host, pinned or not; False if unknown, AdapterInUse while it runs."""
        self._collect()
        revision = self._identities.revision_by_id(lora_int_id)
        if revision is None:
            return False
        num_uses = self._tiers.slots.num_uses(revision)
        if num_uses:
            raise AdapterInUse(
                f"adapter id {lora_int_id} ({revision}) is used by {num_uses} running sequences; remove it "
                "when they have ended, or abort them"
            )
        self._identities.unregister(lora_int_id)
        if not self._identities.ids_of(revision):
            self._tiers.drop(revision)
        return True

    def pin(self, lora_int_id: int) -> bool:
        """Keep an adapter in a slot, giving it one; ValueError if unknown, AllSlotsPinned if none is free."""
        self._collect()
        revision = self._identities.revision_by_id(lora_int_id)
        if revision is None:
            raise ValueError(f"adapter id {lora_int_id} is not loaded; add it before pinning it")
        if revision not in self._tiers.slots and not self._tiers.activate(revision):
            raise AllSlotsPinned(f"no slot to pin adapter id {lora_int_id}: all are in use; try again later")
        self._tiers.slots.pin(revision)
        return True

    def unpin(self, lora_int_id: int) -> bool:
        """Let a pinned adapter be given up again; False if it was not pinned."""
        revision = self._identities.revision_by_id(lora_int_id)
        return revision is not None and self._tiers.slots.unpin(revision)

    def list(self) -> set[int]:
        """Return the ids of the adapters in host memory."""
        self._collect()
        return self._identities.ids()

    @property
    def epoch(self) -> int:
        """The number of the latest residency change."""
        return self._tiers.residency.epoch

    def drain_changes(self) -> builtins.list[ResidencyChange]:
        """Return the residency changes since the last call, oldest first."""
        self._collect()
        return self._tiers.residency.drain()

    def residency(self) -> dict[str, Tier]:
        """Return the tier of every revision on host or device."""
        self._collect()
        return self._tiers.residency.tiers()

    def tier_of(self, revision: str) -> Tier:
        """Return where one revision is, without copying the rest."""
        return self._tiers.residency.tier_of(revision)

    def stats(self) -> AdapterStats:
        """Return what loading and keeping adapters has cost so far."""
        self._collect()
        return self._tiers.stats(num_loading=self._loads.num_underway)

    def close(self) -> None:
        """End the loader; the manager is of no use afterwards."""
        self._loads.close()

    # Loading

    def _load(self, request: LoRARequest) -> AdapterWeights:
        """Read, check and pack an adapter; runs on the loader's thread and reads only what never changes."""
        checked = check_adapter(
            request.lora_path,
            base=self._base,
            max_rank=self._max_lora_rank,
            name=request.lora_name,
            revision=request.revision,
            target_modules=self._target_modules,
        )
        weights = pack_adapter(checked, shapes=self._base.shapes, layout=self._layout, dtype=self._dtype)
        limit = self._max_saved_module_bytes
        if limit is not None and weights.saved_bytes > limit:
            raise AdapterTooLarge(
                f"{checked.label}: its modules_to_save take {weights.saved_bytes} bytes, but "
                f"max_saved_module_bytes is {limit}; raise it, or train with LoRA on them"
            )
        return weights

    def _start_if_room(self, request: LoRARequest) -> None:
        if self._loads.is_underway(request):
            return
        # One load may run ahead of its place, to be at hand when a busy one ends; more would waste memory.
        if self._loads.num_underway == 0 or self._tiers.host.has_room_for(self._loads.num_underway + 1):
            self._loads.start(request)

    def _load_now(self, request: LoRARequest) -> str:
        weights = self._loads.take_arrival(request)
        if weights is None:
            finished = self._loads.finish(request)
            for result in finished:
                self._note(result)
            if finished[-1].error is not None:
                raise finished[-1].error
            weights = self._loads.take_arrival(request)
        assert weights is not None
        if weights.digest not in self._tiers and not self._place(request, weights, even_wanted=True):
            self._tiers.residency.record(weights.digest, "none")
            raise AllSlotsPinned(
                f"adapter {request.lora_name!r} has no place on the host: all there are in use or pinned; "
                "raise max_cpu_loras or try again later"
            )
        return weights.digest

    def _collect(self) -> None:
        """Take in what the loader finished; what finds no place waits, first come, first served."""
        for result in self._loads.collect():
            self._note(result)
        arrivals = self._loads.arrivals
        while arrivals:
            first = arrivals[0]
            # Adapters that others want give way once the arrival has waited as long as they are protected.
            has_waited = self._clock() >= first.at + WANTED_S
            if first.weights.digest not in self._tiers and not self._place(
                first.request, first.weights, even_wanted=has_waited
            ):
                self._tiers.residency.record(first.weights.digest, "host")
                return
            arrivals.popleft()

    def _place(self, request: LoRARequest, weights: AdapterWeights, *, even_wanted: bool) -> bool:
        left = self._tiers.admit(weights, even_wanted=even_wanted)
        if left is None:
            return False
        for revision in left:
            self._identities.forget(revision)
            log.info("adapter.evicted", revision=revision)
        self._identities.register(request.lora_int_id, weights.digest)
        return True

    def _note(self, result: LoadResult) -> None:
        request, error, weights = result.request, result.error, result.weights
        if weights is None:
            self._tiers.counters.failed(request.revision or request.lora_path)
            log.warning(
                "adapter.load_failed", adapter=request.lora_name, path=request.lora_path, error=str(error)
            )
            return
        self._identities.learn(request.lora_path, result.files, weights.digest)
        self._tiers.counters.loaded(weights.digest, result.load_ms)
        log.info(
            "adapter.loaded",
            adapter=request.lora_name,
            revision=weights.digest,
            load_ms=round(result.load_ms, 1),
            num_bytes=weights.num_bytes,
        )


def _check_limits(max_loras: int, host_capacity: int, max_lora_rank: int, device: torch.device) -> None:
    if max_loras < 1 or max_lora_rank < 1:
        raise ConfigError(f"max_loras={max_loras} and max_lora_rank={max_lora_rank} must be at least 1")
    if host_capacity < max_loras:
        raise ConfigError(
            f"max_cpu_loras={host_capacity} is below max_loras={max_loras}: slots need the host copy; "
            f"raise max_cpu_loras to {max_loras}"
        )
    if device.type != "cpu":
        raise ConfigError(f"adapters on device {str(device)!r} are not supported; use device='cpu'")
