"""Adapters between disk, host memory and slots, as the engine and its owner ask for them."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from kernels.lora.tables import LoRAModule
from kernels.registry import Kernels, build
from workers.engine.core.adapter_stats import AdapterStats, RevisionStats
from workers.engine.core.composition import AcquiredSlot
from workers.engine.core.errors import AdapterInUse, AdapterTooLarge, AllSlotsPinned, ConfigError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.residency_change import ResidencyChange, Tier
from workers.engine.lora.files.base import BaseDescription, ModuleShape, Vocabulary
from workers.engine.lora.files.chat_files import ChatFiles
from workers.engine.lora.loading import DEFAULT_TIMEOUT_S, Loader, LoaderChild, LoadSpec
from workers.engine.lora.residency.adapter_memory import AdapterMemory
from workers.engine.lora.residency.fetcher import AdapterFetcher
from workers.engine.lora.residency.identities import Identities
from workers.engine.lora.residency.loads import DEFAULT_MAX_QUEUED, Loads
from workers.engine.lora.residency.tiers import Tiers
from workers.engine.lora.tables.adapter_weights import check_mixable
from workers.engine.lora.tables.dora import DoraTerms
from workers.engine.lora.tables.packed_slots import PackedLayout
from workers.engine.lora.tables.vocabulary_slots import VocabularySlots

__all__ = ["LoRAManager", "ModuleShape"]


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
        kernels: Kernels | None = None,
        base_name: str = "",
        parameters: Mapping[str, str] | None = None,
        base_chats: ChatFiles | None = None,
        vocabulary: Vocabulary | None = None,
        target_modules: Sequence[str] | None = None,
        max_saved_module_bytes: int | None = None,
        dora: DoraTerms | None = None,
        max_cpu_lora_bytes: int | None = None,
        lora_load_timeout_s: float = DEFAULT_TIMEOUT_S,
        max_queued_lora_loads: int = DEFAULT_MAX_QUEUED,
        loader_child: LoaderChild | None = None,
        memory: AdapterMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shapes` are the base's linear layers by module path; an empty `base_name` means unknown, and no
        `base_chats` that the base's chat files are.

        `layout` says which of them are packed together, `parameters` which are no modules. `target_modules`
        are those that adapters may change, None for all. Without `vocabulary` adapters cannot change
        embedding and head, without `dora` they cannot have DoRA. Without `kernels` they are the best of the
        device. `memory` is where the device reads adapters, None for the host's.
        """
        host_capacity = max_loras if max_cpu_loras is None else max_cpu_loras
        _check_limits(max_loras, host_capacity, max_lora_rank)
        kernels = kernels or build(torch.device(device).type, dtype)
        spec = LoadSpec(
            base=BaseDescription(
                base_name,
                num_layers,
                dict(shapes),
                dict(layout),
                vocabulary,
                parameters=dict(parameters or {}),
                chats=base_chats,
            ),
            max_rank=max_lora_rank,
            dtype=str(dtype).removeprefix("torch."),
            head_dtype=str(kernels.logits.weight_dtype).removeprefix("torch."),
            target_modules=None if target_modules is None else tuple(target_modules),
            max_bytes=max_cpu_lora_bytes,
            max_saved_bytes=max_saved_module_bytes,
            timeout_s=lora_load_timeout_s,
        )
        self._identities = Identities()
        self._tiers = Tiers(
            shapes,
            layout,
            num_slots=max_loras,
            kernels=kernels,
            max_rank=max_lora_rank,
            host_capacity=host_capacity,
            host_bytes=max_cpu_lora_bytes,
            clock=clock,
            vocabulary=vocabulary,
            max_saved_bytes=max_saved_module_bytes,
            dora=dora,
            memory=memory,
            device=device,
            has_pin=self._identities.has_pin,
        )
        self._retired: set[str] = set()
        self._loads = Loads(Loader(spec, loader_child), max_queued=max_queued_lora_loads, clock=clock)
        self._fetcher = AdapterFetcher(self._loads, self._tiers, self._identities, clock=clock)

    # What the engine asks for its sequences

    def acquire(self, request: LoRARequest) -> int | None:
        """Take in what has been loaded and return one adapter's slot; see `acquire_all`."""
        self.collect()
        acquired = self.acquire_all([request])
        return None if acquired is None else acquired[0].slot

    def acquire_all(self, requests: Sequence[LoRARequest]) -> tuple[AcquiredSlot, ...] | None:
        """Return the adapters' slots, all now counted in use; None, and none counted, while one lacks.

        Ask again then, after the next `collect`. Raises the AdapterError for which an adapter cannot be
        served, or the RequestError for which these cannot be served together.
        """
        found = [revision for request in requests if (revision := self._on_host(request)) is not None]
        if len(found) < len(requests):
            return None
        check_mixable([self._tiers.host.peek(revision) for revision in found], requests)
        self._refuse_if_too_large(found, requests)
        slots = self._tiers.use_all(found)
        if slots is None:
            return None
        for request, revision in zip(requests, found, strict=True):
            self._identities.hold(request, revision)
        return tuple(map(AcquiredSlot, found, slots))

    def is_loaded(self, request: LoRARequest) -> bool:
        """Tell whether an adapter is in memory and lacks nothing but a place on the host or a slot."""
        revision = self._known_revision(request)
        return (revision is not None and revision in self._tiers) or self._loads.has_arrived(request)

    def release(self, request: LoRARequest) -> None:
        """Count one sequence less on the adapter; call it once for each acquisition that gave a slot."""
        revision = self._identities.revision_of(request)
        if revision is None:
            raise ValueError(f"adapter {request.lora_name!r} runs nowhere; release only what was acquired")
        self._tiers.slots.release(revision)
        if self._tiers.slots.num_uses(revision) == 0:
            self._identities.let_go(revision)

    def prefetch(self, request: LoRARequest) -> None:
        """Start loading an adapter into host memory if there is a place; `acquire` tells if that failed."""
        self._fetcher.prefetch(request)

    def collect(self) -> None:
        """Take in what has been loaded or copied, go on with what is hinted at; next to nothing otherwise."""
        self._tiers.take_in()
        self._fetcher.collect()

    def await_load(self, timeout_s: float) -> bool:
        """Wait until `collect` may have something new, at most so long; False, at once, if nothing loads."""
        return self._loads.await_answer(timeout_s)

    def is_loading(self, request: LoRARequest) -> bool:
        """Tell whether an adapter's load is queued, running, or has arrived and waits for a place."""
        return self._loads.is_underway(request)

    def cancel_load(self, request: LoRARequest) -> bool:
        """Take back a load that nobody waits for any more; False if it has begun or is hinted at."""
        return self._fetcher.cancel(request)

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

    def warnings_of(self, request: LoRARequest) -> tuple[str, ...]:
        """Return what is uncertain about an adapter; call it while the request holds its slot."""
        revision = self._identities.revision_of(request)
        if revision is None or revision not in self._tiers:
            return ()
        return tuple(f"{request.lora_name}: {one}" for one in self._tiers.host.peek(revision).warnings)

    def packed(self, layer: int, module: str) -> LoRAModule:
        """Return a packed module as LoRA kernels read it; the same object for the engine's life."""
        return self._tiers.table(layer, module)

    @property
    def vocabulary(self) -> VocabularySlots | None:
        """What the slots' adapters do to embedding and head; None if they cannot."""
        return self._tiers.vocabulary

    # What the engine's owner asks

    def add(self, request: LoRARequest, *, load_inplace: bool = False) -> bool:
        """Load an adapter now and give it a slot if one is idle; False if it had one. Waits for the disk.

        `load_inplace` reads its files once more, whatever is known of them. What they hold takes the id over
        in one go: sequences that run keep the revision they began with, all later ones have the new one.
        """
        self._fetcher.collect()
        before = self._identities.revision_by_id(request.lora_int_id)
        revision = None if load_inplace else self._identities.revision_of(request)
        if revision is None or revision not in self._tiers:
            load = self._fetcher.reload_now if load_inplace else self._fetcher.load_now
            revision = load(request)
        self._identities.register(request.lora_int_id, revision)
        if before is not None and before != revision and before in self._tiers:
            self._retire(before, request)
        if revision in self._tiers.slots:
            self._tiers.touch(revision)
            return False
        self._tiers.activate(revision)
        self._tiers.await_arrival(revision)
        return True

    def remove(self, lora_int_id: int) -> bool:
        """Drop an adapter from slot and host, pinned or not; False if unknown, AdapterInUse while it runs.

        One that other ids stand for as well stays for them.
        """
        self._fetcher.collect()
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
        """Keep an adapter in a slot, giving it one; ValueError if unknown, AllSlotsPinned if none is free.

        The pin is the id's: what the id comes to stand for is pinned in its place, from its next use on.
        """
        self._fetcher.collect()
        revision = self._identities.revision_by_id(lora_int_id)
        if revision is None:
            raise ValueError(f"adapter id {lora_int_id} is not loaded; add it before pinning it")
        if revision not in self._tiers.slots and not self._tiers.activate(revision):
            raise AllSlotsPinned(f"no slot to pin adapter id {lora_int_id}: all are in use; try again later")
        self._identities.pin(lora_int_id)
        return True

    def plan(self, wanted: Sequence[LoRARequest | str], drop: Iterable[LoRARequest | str] = ()) -> None:
        """Take a hint which adapters will be needed, in order, and which will not; see `ResidencyPlan`.

        Wanted ones are loaded ahead while nothing else is, into places that no earlier one of them needs.
        Those to drop leave first when a place is wanted. Both may be named by revision once they are here.
        """
        self._fetcher.follow(wanted, drop)

    @property
    def retired(self) -> frozenset[str]:
        """The revisions that gave their id over and are kept for sequences that began with them."""
        return frozenset(self._retired)

    def drop_retired(self, held: Collection[str | None]) -> None:
        """Free the retired revisions that are not among those `held` by sequences."""
        for revision in self._retired - set(held):
            self._retired.discard(revision)
            if revision in self._tiers and not self._identities.ids_of(revision):
                self._tiers.drop(revision)

    def unpin(self, lora_int_id: int) -> bool:
        """Let a pinned adapter be given up again; False if it was not pinned by this id."""
        return self._identities.unpin(lora_int_id)

    def list(self) -> set[int]:
        """Return the ids of the adapters in host memory."""
        self._fetcher.collect()
        return self._identities.ids()

    @property
    def epoch(self) -> int:
        """The number of the latest residency change."""
        return self._tiers.residency.epoch

    def drain_changes(self) -> builtins.list[ResidencyChange]:
        """Return the residency changes since the last call, oldest first."""
        self._fetcher.collect()
        return self._tiers.residency.drain()

    def residency(self) -> dict[str, Tier]:
        """Return the tier of every revision on host or device."""
        self._fetcher.collect()
        return self._tiers.residency.tiers()

    def tier_of(self, revision: str) -> Tier:
        """Return where one revision is, without copying the rest."""
        return self._tiers.residency.tier_of(revision)

    @property
    def num_loading(self) -> int:
        """Loads queued, running, or arrived without a place yet, as of the last `collect`."""
        return self._loads.num_underway

    def stats(self) -> AdapterStats:
        """Return what loading and keeping adapters has cost so far."""
        self._fetcher.collect()
        return self._tiers.stats(num_loading=self._loads.num_underway)

    def close(self) -> None:
        """End the loader and the copies; the manager is of no use afterwards."""
        self._loads.close()
        self._tiers.close()

    def _known_revision(self, request: LoRARequest) -> str | None:
        """Return the revision that a waiting request means; None while its files are still to be read.

        Asked for every waiting sequence in every step, so that it costs no look at files that are being read.
        """
        is_being_read = request.revision is None and self._loads.is_loading(request)
        return None if is_being_read else self._identities.revision_of(request)

    def _on_host(self, request: LoRARequest) -> str | None:
        """Return an adapter's revision if it is on the host, and keep it there; else see to its load."""
        revision = self._known_revision(request)
        if revision is not None and revision in self._tiers:
            self._identities.register(request.lora_int_id, revision)
            self._tiers.host.want(revision)
            return revision
        self._loads.raise_failure(request)
        self._fetcher.start_if_room(request)
        return None

    def _refuse_if_too_large(self, revisions: Sequence[str], requests: Sequence[LoRARequest]) -> None:
        shortage = self._tiers.shortage(revisions)
        if shortage is not None:
            names = " and ".join(repr(request.lora_name) for request in requests)
            raise AdapterTooLarge(f"adapter {names}: {shortage}; raise it, or ask for fewer or smaller ones")

    def _retire(self, revision: str, successor: LoRARequest) -> None:
        """Keep a revision that gave its id to another only for those who run with it."""
        self._identities.let_go_of_path(successor.lora_path)
        if self._identities.ids_of(revision):
            return
        self._tiers.host.expend(revision)
        self._retired.add(revision)


def _check_limits(max_loras: int, host_capacity: int, max_lora_rank: int) -> None:
    if max_loras < 1 or max_lora_rank < 1:
        raise ConfigError(f"max_loras={max_loras} and max_lora_rank={max_lora_rank} must be at least 1")
    if host_capacity < max_loras:
        raise ConfigError(
            f"max_cpu_loras={host_capacity} is below max_loras={max_loras}: slots need the host copy; "
            f"raise max_cpu_loras to {max_loras}"
        )
