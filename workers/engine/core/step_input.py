"""The two halves of a step as plain tensors; executors see these and nothing of sequences or requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from kernels.lora.segments import Segments
from workers.engine.core.outputs import TopLogprobs


class StepShape(NamedTuple):
    """What a step for a GPU is filled up to."""

    num_tokens: int
    num_seqs: int
    max_blocks: int  # columns of the block tables
    num_tiles: int  # of each pass of LoRA
    tile_rows: int
    is_fixed: bool  # whether it is one of a few, and worth capturing


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences of like length whose attention runs as one padded batch."""

    num_seqs: int
    query_len: int
    query_rows: Tensor  # [num_seqs * query_len] int64, rows of the step; padding repeats the last one
    output_rows: Tensor  # [num_seqs * query_len] int64, where results go; padding goes to row num_tokens
    kv_rows: Tensor  # [num_seqs * num_kv_heads * num_blocks] int64, block * num_kv_heads + head
    # [num_seqs, 1, query_len, num_blocks * block_size] each, added to the scores; one per window
    masks: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """The tokens that constrained rows may choose, as packed bits; rows that are not named may choose any."""

    rows: Tensor  # [num_masked] int64, places in `SamplingInput.rows`, none twice
    bits: Tensor  # [num_masked, ceil(vocab_size / 32)] int32, bit t % 32 of word t // 32 allows token t


@dataclass(frozen=True, slots=True)
class LogitShifts:
    """Numbers added to single logits: a request's bias, and -inf for what it may not choose now."""

    rows: Tensor  # [num_shifts] int64, places in `SamplingInput.rows`
    token_ids: Tensor  # [num_shifts] int64; a token may be named twice
    values: Tensor  # [num_shifts] float32


@dataclass(frozen=True, slots=True)
class Penalties:
    """What single logits lose because their tokens were seen before; no token of a row is named twice."""

    rows: Tensor  # [num_penalties] int64, places in `SamplingInput.rows`
    token_ids: Tensor  # [num_penalties] int64
    factors: Tensor  # [num_penalties] float32, divide positive logits and multiply negative ones
    deductions: Tensor  # [num_penalties] float32, subtracted after that


@dataclass(frozen=True, slots=True)
class LogprobRows:
    """Rows whose log-probabilities are wanted beside their tokens."""

    rows: Tensor  # [num_rows] int64, places in `SamplingInput.rows`, rising
    num_likeliest: int


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of one sequence's prompt whose next tokens are known; what the model makes of them is wanted."""

    num_rows: int
    rows: Tensor  # [at least num_rows] int64, rows of the step; padding repeats the last one
    token_ids: Tensor  # [num_rows] int64, the token that follows each row
    num_likeliest: int
    segments: Segments | None  # of `rows`; None: the sequence has no adapter


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """The second half of a step: how each sampled row chooses its token; `None` means that no row needs this.

    `rows` is empty if every row is part of a prompt with more to come, or of a sequence that has ended.
    """

    num_rows: int
    rows: Tensor  # [at least num_rows] int64, rows of the forward pass; padding repeats the last one
    all_greedy: bool
    temperatures: Tensor  # [num_rows] float32, 0 = greedy
    top_ks: Tensor  # [num_rows] int64, vocab_size = no limit
    top_ps: Tensor  # [num_rows] float64
    uniforms: Tensor  # [num_rows] float64 in [0, 1)
    min_ps: Tensor | None = None  # [num_rows] float32, 0 = no limit
    masks: TokenMasks | None = None
    shifts: LogitShifts | None = None
    penalties: Penalties | None = None
    logprobs: LogprobRows | None = None
    segments: Segments | None = None  # of `rows`; None: none of them has an adapter
    prompts: tuple[PromptRows, ...] = ()

    @property
    def edits_logits(self) -> bool:
        """Whether some row's logits are changed before a token is chosen."""
        return not (self.masks is None and self.shifts is None and self.penalties is None)


@dataclass(frozen=True, slots=True)
class CarriedTokens:
    """Rows whose token the step before chooses: the device has it, the host need not know it yet."""

    rows: Tensor  # [num_carried] int64, rows of this step; their token ids there mean nothing
    places: Tensor  # [num_carried] int64, places in the previous step's `SamplingInput.rows`


@dataclass(frozen=True, slots=True)
class ForwardInput:
    """The first half of a step: rows ordered decode first, then prefill chunks, by adapters within each."""

    num_tokens: int  # padding included
    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    kv_write_rows: (
        Tensor  # [num_tokens * num_kv_heads] int64, (block * num_kv_heads + head) * block_size + offset
    )
    sequence_rows: Tensor  # [num_seqs, 3] int32: first row, number of rows, position of the first row
    block_tables: Tensor  # [num_seqs, max_blocks] int32, filled up with the scratch block
    fresh_blocks: Tensor | None  # [num_fresh_blocks] int64, cleared before use
    groups: tuple[AttentionGroup, ...]  # empty if attention reads the cache in place
    segments: Segments | None  # None: no row has an adapter
    carried: CarriedTokens | None = None  # None: every token is in `token_ids`
    shape: StepShape | None = None
    """One of the few shapes that recur, if the step was filled up to it: it may have been captured."""


StepHalf = ForwardInput | SamplingInput


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One token per sampled row, in the order of `SamplingInput.rows`."""

    token_ids: list[int]
    failed: list[bool]  # no token could be chosen; the row's token id is valid, but means nothing
    barred: frozenset[int] = frozenset()
    """Places of the failed rows that had sound logits, but were left no token to choose."""
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)  # by place, of the rows that asked
    prompt_logprobs: list[list[TopLogprobs]] = field(default_factory=list)  # in step with `prompts`
