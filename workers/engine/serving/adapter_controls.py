"""What an engine's owner says about adapters: load, keep, drop, and what will be needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workers.engine.core.composition import unscaled
from workers.engine.core.errors import ConfigError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.core.residency_change import ResidencyChange, Tier
from workers.engine.core.sequence import SequenceState
from workers.engine.lora.residency.loads import load_key
from workers.engine.lora.residency.manager import LoRAManager
from workers.engine.serving.assembly import EngineParts


class AdapterControls:
    """The part of the engine's face that concerns adapters."""

    _parts: EngineParts

    def add_lora(self, request: LoRARequest, *, load_inplace: bool = False) -> bool:
        """Load an adapter and give it a slot; False if it has one already.

        With `load_inplace`, or that of the request, its files are read once more: what runs keeps the
        weights it began with, all later requests of its id and path have the new ones.
        """
        is_new = self._adapters.add(unscaled(request), load_inplace=load_inplace or request.load_inplace)
        self._free_retired()
        return is_new

    def remove_lora(self, lora_int_id: int) -> bool:
        """Drop an adapter and free its memory; False if it is not there, AdapterInUse while it runs."""
        return self._adapters.remove(lora_int_id)

    def pin_lora(self, lora_int_id: int) -> bool:
        """Keep an adapter from being evicted; ValueError if it is not there."""
        return self._adapters.pin(lora_int_id)

    def unpin_lora(self, lora_int_id: int) -> bool:
        """Let a pinned adapter be evicted again."""
        return self._adapters.unpin(lora_int_id)

    def list_loras(self) -> set[int]:
        """Return the ids of the adapters held."""
        return set() if self._parts.adapters is None else self._parts.adapters.list()

    def prefetch(self, request: LoRARequest) -> None:
        """Start loading an adapter into host memory, if there is a place for it."""
        self._adapters.prefetch(unscaled(request))

    def plan_residency(
        self, wanted: Sequence[LoRARequest | str], drop: Iterable[LoRARequest | str] = ()
    ) -> None:
        """Say which adapters will be needed, in this order, and which will not; replaces the last such plan.

        A hint: wanted ones are loaded while nothing else is, and leave last; those to drop leave first. What
        runs or is pinned stays. Adapters that are here may be named by revision.
        """
        self._adapters.plan(
            [one if isinstance(one, str) else unscaled(one) for one in wanted],
            [one if isinstance(one, str) else unscaled(one) for one in drop],
        )

    def residency(self) -> dict[str, Tier]:
        """Return where every revision is, on the host or in a slot as well; the rest is nowhere."""
        return {} if self._parts.adapters is None else self._parts.adapters.residency()

    def drain_residency_changes(self) -> list[ResidencyChange]:
        """Return what became of adapters since the last call, in order."""
        adapters = self._parts.adapters
        return [] if adapters is None else list(adapters.drain_changes())

    @property
    def is_loading_adapters(self) -> bool:
        """Whether there are loads whose end `drain_residency_changes` has yet to tell; takes nothing in."""
        return self._parts.adapters is not None and self._parts.adapters.num_loading > 0

    @property
    def residency_epoch(self) -> int:
        """Number of the latest residency change, 0 before the first."""
        return 0 if self._parts.adapters is None else self._parts.adapters.epoch

    @property
    def _adapters(self) -> LoRAManager:
        if self._parts.adapters is None:
            raise ConfigError("enable_lora is False, so there are no adapters; set it to True")
        return self._parts.adapters

    def _let_go_of_adapters(self, ended: SequenceState) -> None:
        """Cancel the loads that only a sequence now ended waited for; free what was kept for such alone."""
        adapters, batcher = self._parts.adapters, self._parts.batcher
        if adapters is None:
            return
        for member in ended.composition:
            if ended.started_time_s is None and adapters.is_loading(member.lora):
                others = (other for sequence in batcher.waiting for other in sequence.composition)
                if load_key(member.lora) not in map(load_key, (other.lora for other in others)):
                    adapters.cancel_load(member.lora)
        self._free_retired()

    def _free_retired(self) -> None:
        """Free the revisions that gave their id over, once neither sequences nor steps in flight use them."""
        adapters = self._parts.adapters
        if adapters is not None and adapters.retired:
            sequences = self._parts.batcher.sequences()
            adapters.drop_retired({member.lora.revision for one in sequences for member in one.composition})
