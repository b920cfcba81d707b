"""How a job's tokens are chosen beside temperature, top_p, top_k and seed; the defaults change nothing."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from pydantic import BaseModel, ConfigDict, Field

MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 200

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]


class SamplingOptions(BaseModel):
    """The options of `docs/generation.md` that make sense over a queue, under the same names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_p: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0, allow_inf_nan=False)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0, allow_inf_nan=False)
    min_tokens: int = Field(default=0, ge=0, le=1_000_000)
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: dict[TokenId, Bias] = Field(default_factory=dict, max_length=MAX_LOGIT_BIASES)
    bad_words: tuple[Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_CHARS)], ...] = Field(
        default=(), max_length=MAX_BAD_WORDS
    )

    def changed(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON values."""
        names = set(SamplingOptions.model_fields)
        return self.model_dump(mode="json", include=names, exclude_defaults=True)


class SamplingKeywords(TypedDict, total=False):
    """The same options as keywords of a call."""

    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    stop_token_ids: tuple[int, ...] | list[int]
    include_stop_str_in_output: bool
    ignore_eos: bool
    skip_special_tokens: bool
    logit_bias: dict[int, float]
    bad_words: tuple[str, ...] | list[str]
