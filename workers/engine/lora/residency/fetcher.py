"""From a request to a place on the host: starts loads if there is room, and places what they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog

from workers.engine.core.errors import AllSlotsPinned
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.loading import LoadResult
from workers.engine.lora.residency.host_cache import WANTED_S
from workers.engine.lora.residency.identities import Identities
from workers.engine.lora.residency.loads import Loads
from workers.engine.lora.residency.plan import Expected, ResidencyPlan
from workers.engine.lora.residency.tiers import Tiers
from workers.engine.lora.tables.adapter_weights import AdapterWeights

log = structlog.get_logger(__name__)


class AdapterFetcher:
    """Takes adapters in; nothing is given up for one before it has been read and found good."""

    def __init__(
        self, loads: Loads, tiers: Tiers, identities: Identities, *, clock: Callable[[], float]
    ) -> None:
        self._loads = loads
        self._tiers = tiers
        self._identities = identities
        self._clock = clock
        self._plan = ResidencyPlan()

    def prefetch(self, request: LoRARequest) -> None:
        """Start a load if there is a place for it; what failed for a reason that may pass is tried again."""
        self.collect()
        revision = self._identities.revision_of(request)
        if revision is not None and revision in self._tiers:
            self._tiers.host.want(revision)
            return
        self._loads.forget_retryable(request)
        if not self._loads.has_failed(request):
            self.start_if_room(request)

    def start_if_room(self, request: LoRARequest) -> None:
        """Start a load unless it is under way, the queue is full, or there would be no place for it.

        One that was begun ahead of its need is hurried.
        """
        self._loads.hurry(request)
        if self._loads.is_underway(request) or self._loads.is_full or self._loads.arrivals:
            return  # if what arrived found no place, neither would this
        # One load may run ahead of its place, to be at hand when a busy one ends; more would waste memory.
        if self._loads.num_underway == 0 or self._tiers.host.has_room_for(self._loads.num_underway + 1):
            self._loads.start(request)

    def follow(self, wanted: Sequence[LoRARequest | str], drop: Iterable[LoRARequest | str]) -> None:
        """Take hints in place of the last ones: what to load ahead and to keep, in order, and what may go."""
        host = self._tiers.host
        host.expect_nothing()
        self._plan.replace(wanted)
        for turn, one in enumerate(wanted):
            if (revision := self._revision(one)) is not None:
                host.expect(revision, turn)
        for one in drop:
            if (revision := self._revision(one)) is not None and revision in self._tiers:
                host.expend(revision)
        self.collect()

    def cancel(self, request: LoRARequest) -> bool:
        """Take back a load that has not begun, unless it is expected to be needed; False if it was not."""
        return self._plan.turn_of(request) is None and self._loads.cancel(request)

    def reload_now(self, request: LoRARequest) -> str:
        """Read a path's files again and place what they hold now, waiting for it; returns its revision."""
        # What is being read, or has been, may be what the files held before. Not what arrived for another
        # request, though it may be of the same revision: that one waits for it.
        if self._loads.is_loading(request):
            for result in self._loads.finish(request):
                self._note(result)
        self._loads.take_arrival(request)
        return self.load_now(request)

    def load_now(self, request: LoRARequest) -> str:
        """Load and place an adapter, waiting for it; returns its revision."""
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
            raise _no_place(request)
        return weights.digest

    def collect(self) -> None:
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
                if not self._tiers.host.is_shut_out(first.weights):
                    self._tiers.residency.record(first.weights.digest, "host")
                    break
                # It would wait for an owner to unpin, and whatever was asked for after it as well.
                self._loads.reject(first, _no_place(first.request))
                self._tiers.residency.record(first.weights.digest, "none")
                continue
            arrivals.popleft()
        self._loads.hold(bool(arrivals))
        while self._loads.num_underway == 0 and (expected := self._plan.next()) is not None:
            self._load_ahead(expected)

    def _load_ahead(self, expected: Expected) -> None:
        revision = self._identities.revision_of(expected.request)
        if (revision is not None and revision in self._tiers) or self._loads.has_failed(expected.request):
            return
        if self._tiers.host.has_room_for(1, turn=expected.turn):
            self._loads.start(expected.request, is_ahead=True)
        else:
            self._plan.give_up()

    def _revision(self, named: LoRARequest | str) -> str | None:
        return named if isinstance(named, str) else self._identities.revision_of(named)

    def _place(self, request: LoRARequest, weights: AdapterWeights, *, even_wanted: bool) -> bool:
        if (turn := self._plan.turn_of(request)) is not None:
            self._tiers.host.expect(weights.digest, turn)
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
        for warning in weights.warnings:
            log.warning("adapter.warning", adapter=request.lora_name, warning=warning)


def _no_place(request: LoRARequest) -> AllSlotsPinned:
    return AllSlotsPinned(
        f"adapter {request.lora_name!r} has no place on the host: all there are in use or pinned; "
        "unpin one, raise max_cpu_loras or max_cpu_lora_bytes, or try again later"
    )
