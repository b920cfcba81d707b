"""What the engine hands back for a request, shaped as vLLM's users know it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from workers.engine.core.adapter_stats import RevisionStats
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.pickled_by_position import pickled_by_position

FinishReason = Literal["stop", "length", "abort", "error"]


class TopLogprobs(NamedTuple):
    """One position: its token first, then the most likely tokens in falling order, which may repeat it."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of its token, 1 = the most likely


@pickled_by_position
@dataclass(frozen=True, slots=True)
class Logprob:
    """What the model itself thought of one token, before temperature, penalties and limits."""

    logprob: float
    rank: int  # 1 = the most likely
    decoded_token: str


PositionLogprobs = dict[int, Logprob]
"""By token id: the token of this position first, then the most likely ones."""


@pickled_by_position
@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """The generated part; `token_ids` keeps the token that ended it, `text` does not."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None  # None: it goes on
    stop_reason: int | str | None = None
    logprobs: list[PositionLogprobs] | None = None  # one for each token, if asked for
    cumulative_logprob: float | None = None


@pickled_by_position
@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why a request ended with finish_reason "error"."""

    code: str
    message: str
    retryable: bool


@pickled_by_position
@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened (monotonic seconds) and what they cost, all completions together.

    The prompt counts once, however many completions it has.
    `device_ms` is this request's share of the steps it took part in: a step's wall time is split
    over its rows' tokens, so the shares of all requests add up to the engine's `busy_ms`.
    """

    arrival_time_s: float
    started_time_s: float | None  # joined the running batch for the first time
    first_token_time_s: float | None
    finished_time_s: float
    num_prompt_tokens: int
    num_completion_tokens: int
    device_ms: float
    num_preemptions: int
    adapter_use: RevisionStats = field(default_factory=RevisionStats)
    """What its adapters have cost since the last requests with them ended: each load is charged once.

    An eviction is charged to the next request with the adapter; one that nobody asks for again, to no one.
    """
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values were there already when the request started."""


@pickled_by_position
@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request that has ended, one way or another; or, if it is not `finished`, one of its tokens.

    What comes before the end is shaped by `SamplingParams.output_kind` and holds one completion.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    lora_request: AnyLoRA | None
    metrics: RequestMetrics
    error: RequestFailure | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None  # None for the first: nothing precedes it
    sampling: dict[str, float] | None = None
    """What chose the tokens, by parameter, the model's defaults filled in; None if it was refused at once."""
    warnings: tuple[str, ...] = ()
    """What is uncertain about its adapters, once it has ended, such as which base one was trained on."""
