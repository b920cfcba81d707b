"""Sequences take their adapters' slots here, all that they need or none, and give them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workers.engine.core.composition import Seat
from workers.engine.core.errors import RequestError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.residency.identities import Identities
from workers.engine.lora.residency.loads import Loads
from workers.engine.lora.residency.tiers import Tiers
from workers.engine.lora.tables.adapter_weights import AdapterWeights


class Seating:
    """Slots in use by running sequences; what is not on the host yet is asked for."""

    def __init__(
        self, tiers: Tiers, identities: Identities, loads: Loads, start_load: Callable[[LoRARequest], None]
    ) -> None:
        self._tiers = tiers
        self._identities = identities
        self._loads = loads
        self._start_load = start_load

    def take(self, requests: Sequence[LoRARequest]) -> tuple[Seat, ...] | None:
        """Return the adapters' seats, all counted in use; None, and none counted, while one lacks."""
        found = [revision for request in requests if (revision := self._on_host(request)) is not None]
        if len(found) < len(requests):
            return None
        check_mixable([self._tiers.host.peek(revision) for revision in found], requests)
        slots = self._tiers.use_all(found)
        if slots is None:
            return None
        for request, revision in zip(requests, found, strict=True):
            self._identities.hold(request, revision)
        return tuple(map(Seat, found, slots))

    def give_back(self, request: LoRARequest) -> None:
        """Count one sequence less on one of the seats taken."""
        revision = self._identities.revision_of(request)
        if revision is None:
            raise ValueError(f"adapter {request.lora_name!r} runs nowhere; release only what was acquired")
        self._tiers.slots.release(revision)
        if self._tiers.slots.num_uses(revision) == 0:
            self._identities.let_go(revision)

    def is_loaded(self, request: LoRARequest) -> bool:
        """Tell whether an adapter is in memory and lacks nothing but a place on the host or a slot."""
        revision = self._identities.revision_of(request)
        return (revision is not None and revision in self._tiers) or self._loads.has_arrived(request)

    def _on_host(self, request: LoRARequest) -> str | None:
        """Return an adapter's revision if it is on the host, and keep it there; else see to its load."""
        revision = self._identities.revision_of(request)
        if revision is not None and revision in self._tiers:
            self._identities.register(request.lora_int_id, revision)
            self._tiers.host.want(revision)
            return revision
        self._loads.raise_failure(request)
        self._start_load(request)
        return None


def check_mixable(weights: Sequence[AdapterWeights], loras: Sequence[LoRARequest]) -> None:
    """Raise RequestError for an adapter that must be alone upon its request and is not."""
    if len(loras) < 2:
        return
    for one, lora in zip(weights, loras, strict=True):
        if one.unmixable is not None:
            raise RequestError(
                f"adapter {lora.lora_name!r} cannot be in a LoRAMix: {one.unmixable}; ask for it alone, "
                "with a scale if need be"
            )
