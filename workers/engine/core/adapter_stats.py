"""What loading and keeping adapters has cost so far, in all and per revision."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from workers.engine.core.pickled_by_position import pickled_by_position


@pickled_by_position
@dataclass(frozen=True, slots=True)
class RevisionStats:
    """Counts since start: a hit is an acquire that found a slot, an eviction a fall off the host."""

    loads: int = 0
    load_ms: float = 0.0
    hits: int = 0
    evictions: int = 0
    failures: int = 0
    non_finite: int = 0  # requests with it that ended in NaN or infinite logits

    def since(self, earlier: RevisionStats) -> RevisionStats:
        """Return what came on top of an earlier reading."""
        return RevisionStats(*map(operator.sub, astuple(self), astuple(earlier)))

    def __add__(self, other: RevisionStats) -> RevisionStats:
        """Return both counts together, as of several adapters upon one request."""
        return RevisionStats(*map(operator.add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class AdapterStats:
    """The same counts in all, and what is held now; a failure without a known digest counts for the path."""

    loads: int
    load_ms: float
    hits: int
    evictions: int
    slot_evictions: int
    failures: int
    non_finite: int
    num_on_device: int
    num_on_host: int
    host_bytes: int
    saved_module_bytes: int  # of modules_to_save, beside host_bytes
    num_loading: int
    revisions: Mapping[str, RevisionStats]


@dataclass(slots=True)
class _Counts:
    loads: int = 0
    load_ms: float = 0.0
    hits: int = 0
    evictions: int = 0
    failures: int = 0
    non_finite: int = 0

    def frozen(self) -> RevisionStats:
        return RevisionStats(*astuple(self))


@dataclass(slots=True)
class AdapterCounters:
    """The running counts behind `AdapterStats`."""

    slot_evictions: int = 0
    _by_revision: dict[str, _Counts] = field(default_factory=lambda: defaultdict(_Counts))
    _charged: dict[str, RevisionStats] = field(default_factory=dict)

    def loaded(self, revision: str, load_ms: float) -> None:
        """Count a load and the time it took."""
        counts = self._by_revision[revision]
        counts.loads += 1
        counts.load_ms += load_ms

    def hit(self, revision: str) -> None:
        """Count a sequence whose revision had a slot already."""
        self._by_revision[revision].hits += 1

    def evicted(self, revision: str) -> None:
        """Count weights that left the host for others."""
        self._by_revision[revision].evictions += 1

    def failed(self, revision_or_path: str) -> None:
        """Count a load that failed; without a revision, by the adapter's path."""
        self._by_revision[revision_or_path].failures += 1

    def non_finite(self, revision: str) -> None:
        """Count a request with it that ended in NaN or infinite logits."""
        self._by_revision[revision].non_finite += 1

    def take_uncharged(self, revision: str) -> RevisionStats:
        """Return what has been counted for a revision since the last call, to charge somebody for it."""
        now = self._by_revision[revision].frozen()
        uncharged = now.since(self._charged.get(revision, RevisionStats()))
        self._charged[revision] = now
        return uncharged

    def freeze(
        self,
        *,
        num_on_device: int,
        num_on_host: int,
        host_bytes: int,
        saved_module_bytes: int,
        num_loading: int,
    ) -> AdapterStats:
        """Return the counts as they are now."""
        revisions = {revision: counts.frozen() for revision, counts in self._by_revision.items()}
        every = revisions.values()
        return AdapterStats(
            loads=sum(counts.loads for counts in every),
            load_ms=sum(counts.load_ms for counts in every),
            hits=sum(counts.hits for counts in every),
            evictions=sum(counts.evictions for counts in every),
            slot_evictions=self.slot_evictions,
            failures=sum(counts.failures for counts in every),
            non_finite=sum(counts.non_finite for counts in every),
            num_on_device=num_on_device,
            num_on_host=num_on_host,
            host_bytes=host_bytes,
            saved_module_bytes=saved_module_bytes,
            num_loading=num_loading,
            revisions=revisions,
        )
