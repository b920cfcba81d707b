"""What the engine has done and what it can still take on; step time is shared out among requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.core.adapter_stats import AdapterStats
from workers.engine.core.sequence import SequenceState, Span
from workers.engine.kv.kv_cache import BlockAllocator
from workers.engine.kv.prefix_cache import PrefixCache
from workers.engine.lora.residency.manager import LoRAManager
from workers.engine.scheduling.batching import Batcher

_WEIGHT_OF_LATEST = 0.2


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and what is held now."""

    num_steps: int
    num_replayed_steps: (
        int  # of those, launched as one captured graph; on a GPU the rest was too large or mixed
    )
    busy_ms: float
    wasted_ms: float  # of those, spent on rows whose request had ended before they were computed
    num_prompt_tokens: int
    num_completion_tokens: int
    num_preemptions: int
    num_running: int
    num_waiting: int
    num_free_kv_blocks: int  # cached ones without users among them
    num_cached_kv_blocks: int
    num_prefix_query_tokens: int  # of admitted sequences, readmitted ones counted again
    num_prefix_hit_tokens: int  # of those, found in the cache
    adapters: AdapterStats | None


class Capacity(NamedTuple):
    """What the engine could still take on."""

    free_seqs: int
    free_kv_blocks: int
    waiting: int
    busy_ms: float


class StepTimes:
    """Mutable: how long steps have taken, by the power of two of their tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of a step of 2 ** key tokens

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take in a step; the latest ones count most."""
        size = num_tokens.bit_length()
        before = self._seconds.get(size, seconds)
        self._seconds[size] = before + (seconds - before) * _WEIGHT_OF_LATEST

    def predict_s(self, num_tokens: int) -> float:
        """Predict a step from those of its size, else by its tokens from the next smaller or larger ones.

        Zero while nothing was observed. A larger step takes as much longer at most, a smaller one no longer.
        """
        size = num_tokens.bit_length()
        known = min(self._seconds, key=lambda other: (abs(other - size), other), default=None)
        if known is None:
            return 0.0
        return self._seconds[known] * max(1.0, 2.0 ** (size - known))


class EngineCounters:
    """Running counts; what is charged to requests and `wasted_ms` add up to `busy_ms`."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.times = StepTimes()
        self.busy_ms = 0.0
        self.wasted_ms = 0.0
        self._completed_s = 0.0
        self.num_prompt_tokens = 0
        self.num_completion_tokens = 0

    def charge(self, spans: Sequence[Span], began_s: float, completed_s: float) -> None:
        """Share a step's wall time out, by tokens; it begins no sooner than the step before ended."""
        step_ms = (completed_s - max(began_s, self._completed_s)) * 1000.0
        self._completed_s = completed_s
        self.num_steps += 1
        self.busy_ms += step_ms
        num_tokens = sum(span.num_rows for span in spans)
        self.times.observe(num_tokens, step_ms / 1000.0)
        ms_per_token = step_ms / num_tokens
        for span in spans:
            if span.sequence.has_ended:
                self.wasted_ms += ms_per_token * span.num_rows
            else:
                span.sequence.device_ms += ms_per_token * span.num_rows

    def close(self, sequence: SequenceState) -> None:
        """Count the tokens of a sequence that ended; completions of one request share their prompt."""
        if sequence.index == 0:
            self.num_prompt_tokens += sequence.num_prompt_tokens
        self.num_completion_tokens += sequence.num_output_tokens

    def stats(
        self,
        batcher: Batcher,
        allocator: BlockAllocator,
        prefixes: PrefixCache | None,
        adapters: LoRAManager | None,
        *,
        num_replayed_steps: int,
    ) -> EngineStats:
        """Return the counts with what the engine's parts hold now."""
        return EngineStats(
            num_steps=self.num_steps,
            num_replayed_steps=num_replayed_steps,
            busy_ms=self.busy_ms,
            wasted_ms=self.wasted_ms,
            num_prompt_tokens=self.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens,
            num_preemptions=batcher.num_preemptions,
            num_running=len(batcher.running),
            num_waiting=len(batcher.waiting),
            num_free_kv_blocks=allocator.num_free,
            num_cached_kv_blocks=allocator.num_published,
            num_prefix_query_tokens=0 if prefixes is None else prefixes.num_query_tokens,
            num_prefix_hit_tokens=0 if prefixes is None else prefixes.num_hit_tokens,
            adapters=None if adapters is None else adapters.stats(),
        )
