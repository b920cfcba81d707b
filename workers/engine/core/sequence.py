"""The mutable state of one completion while the engine holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kernels.lora.segments import SlotScale, SlotScales
from workers.engine.core.adapter_stats import RevisionStats
from workers.engine.core.composition import AcquiredSlot, composition_of, pinned
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.output_stream import OutputStream
from workers.engine.core.outputs import RequestMetrics, TopLogprobs
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.core.sequence_parts import Grammar, KeyChain, StopChecker, TokenRules

KVIdentity = tuple[tuple[str | None, float], ...]
"""Revision and scale of every adapter, in order; empty for the base model."""


class SequenceState:
    """Tokens, cache blocks, adapter slots, accounts of one completion; changed only by the engine's loop.

    Two counters say how far it is: `num_computed_tokens` grows when a step's results are here,
    `num_scheduled_tokens` as soon as a step is launched. `pending_place` says that a step in flight chooses
    its next token, and at which place of that step's sampled rows. `epoch` grows when it loses its blocks, by
    preemption or in the end: rows that were launched before are then no longer its own.
    """

    __slots__ = (
        "adapter_use",
        "adapter_warnings",
        "arrival_time_s",
        "block_table",
        "cache_salt",
        "composition",
        "device_ms",
        "epoch",
        "first_token_time_s",
        "grammar",
        "has_ended",
        "index",
        "keys",
        "logprobs",
        "lora",
        "max_total_tokens",
        "num_adopted_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_in_flight_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_slot_waits",
        "num_steps_in_flight",
        "params",
        "pending_place",
        "prompt",
        "prompt_logprobs",
        "reads_prefix_cache",
        "request_id",
        "rules",
        "seed",
        "slots",
        "started_time_s",
        "stop_checker",
        "stream",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        lora: AnyLoRA | None,
        *,
        seed: int,
        max_total_tokens: int,
        stop_checker: StopChecker | None,
        arrival_time_s: float,
        index: int = 0,
        cache_salt: str | None = None,
        rules: TokenRules | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.prompt = prompt
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.params = params.effective()
        self.lora = lora
        self.composition = composition_of(lora)
        self.seed = seed
        self.max_total_tokens = max_total_tokens
        self.stop_checker = stop_checker
        self.arrival_time_s = arrival_time_s
        self.cache_salt = cache_salt
        self.rules = rules
        self.grammar = grammar
        self.stream = OutputStream(self.token_ids, params.output_kind) if params.streams else None
        self.started_time_s: float | None = None
        self.first_token_time_s: float | None = None
        self.block_table: list[int] = []
        self.num_computed_tokens = 0
        self.num_in_flight_tokens = 0
        self.num_steps_in_flight = 0  # those before its latest preemption included
        self.pending_place: int | None = None
        self.epoch = 0
        self.has_ended = False
        self.keys: KeyChain | None = None
        self.logprobs: list[TopLogprobs] | None = None if params.logprobs is None else []
        asks_of_prompt = params.prompt_logprobs is not None and index == 0
        self.prompt_logprobs: list[TopLogprobs] | None = [] if asks_of_prompt else None
        # The logits of tokens whose keys and values are taken over are never computed.
        self.reads_prefix_cache = not asks_of_prompt
        self.num_adopted_blocks = 0
        self.num_published_blocks = 0  # leading blocks that are offered to others, the adopted ones included
        self.num_cached_tokens = 0
        self.slots: SlotScales = ()
        self.num_slot_waits = 0
        self.num_preemptions = 0
        self.device_ms = 0.0
        self.adapter_use = RevisionStats()
        self.adapter_warnings: tuple[str, ...] = ()

    @property
    def has_slots(self) -> bool:
        """Whether all its adapters are in slots that count it; the base model needs none."""
        return len(self.slots) == len(self.composition)

    @property
    def kv_identity(self) -> KVIdentity:
        """What its keys and values depend on beside base and tokens; known once it holds its slots."""
        return tuple((member.lora.revision, member.scale) for member in self.composition)

    def take_slots(self, acquired: Sequence[AcquiredSlot]) -> None:
        """Give it its adapters' slots; from now on it means the revisions found there, and no others."""
        self.composition = pinned(self.composition, acquired)
        self.slots = tuple(
            SlotScale(one.slot, member.scale) for one, member in zip(acquired, self.composition, strict=True)
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values are not known to be in the cache yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens whose keys and values are in the cache, or will be once the steps in flight are done."""
        return self.num_computed_tokens + self.num_in_flight_tokens

    @property
    def num_unscheduled_tokens(self) -> int:
        """Tokens still to be computed by steps to come, the one that a step in flight chooses included."""
        is_pending = self.pending_place is not None
        return len(self.token_ids) + is_pending - self.num_computed_tokens - self.num_in_flight_tokens

    @property
    def ends_with_pending(self) -> bool:
        """Whether the token that a step in flight chooses is its last, whatever it is."""
        return self.pending_place is not None and len(self.token_ids) + 1 >= self.max_total_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    def append(self, token_id: int, now_s: float, logprobs: TopLogprobs | None = None) -> None:
        """Add a token generated just now, with its log-probabilities if the request asked for them."""
        self.token_ids.append(token_id)
        if self.first_token_time_s is None:
            self.first_token_time_s = now_s
        if self.logprobs is not None and logprobs is not None:
            self.logprobs.append(logprobs)
        if self.rules is not None:
            self.rules.append(token_id)
        if self.grammar is not None:
            self.grammar.advance(token_id)

    def note_prompt(self, found: Sequence[TopLogprobs]) -> None:
        """Add what the model makes of the next tokens of the prompt."""
        assert self.prompt_logprobs is not None, "nobody asked for them"
        self.prompt_logprobs.extend(found)

    def metrics(self, finished_time_s: float) -> RequestMetrics:
        """Return this request's accounts, closed at `finished_time_s`."""
        return RequestMetrics(
            arrival_time_s=self.arrival_time_s,
            started_time_s=self.started_time_s,
            first_token_time_s=self.first_token_time_s,
            finished_time_s=finished_time_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_completion_tokens=self.num_output_tokens,
            device_ms=self.device_ms,
            num_preemptions=self.num_preemptions,
            num_cached_tokens=self.num_cached_tokens,
            adapter_use=self.adapter_use,
        )


class Span(NamedTuple):
    """One sequence's rows in one step, which it still is when the step's results arrive."""

    sequence: SequenceState
    epoch: int  # the sequence's when the step was built
    first_row: int
    num_rows: int
    start: int  # position of the first row

    @property
    def is_live(self) -> bool:
        """Whether the sequence still has the blocks that these rows are written to."""
        return self.sequence.epoch == self.epoch

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the sequence is left to compute, so that its next token can be chosen."""
        return self.start + self.num_rows == len(self.sequence.token_ids)
