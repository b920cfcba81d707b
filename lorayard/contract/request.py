"""What a job asks to have generated: one description, the same from the producer to the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from lorayard.contract.storable import storable_text
from lorayard.contract.structured_outputs import StructuredOutputs

MAX_PROMPT_BYTES = 1_000_000
MAX_MESSAGES = 4096
MAX_ADAPTER_SCALE = 100.0
MAX_TOKENS = 1_000_000
MAX_TEMPERATURE = 100.0
LARGEST_TOP_K = 2**31 - 1
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1000
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARS = 1000
BYTES_PER_TOKEN = 3.0
"""English text takes about four with common vocabularies, code and other languages less."""

Text = Annotated[str, AfterValidator(storable_text)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
BadWord = Annotated[Text, Field(min_length=1, max_length=MAX_BAD_WORD_CHARS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0), AfterValidator(lambda top_k: min(top_k, LARGEST_TOP_K))]
"""Beyond any vocabulary it keeps every token, so nothing larger need be carried."""

NEUTRAL: Mapping[str, float] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What the fields that a job may leave to the model mean if the model says nothing either; never changes."""


def described(default: Any, description: str, remedy: str, **limits: Any) -> Any:
    """Declare a field with what it does (the command line shows it) and what to give instead of a bad value.

    None as a value always means "not set", so a field that takes it has it as its default.
    """
    return Field(default, description=description, json_schema_extra={"remedy": remedy}, **limits)


def number(default: float | None, description: str, remedy: str, *, low: float, high: float) -> Any:
    """Declare a finite number from `low` to `high`."""
    return described(default, description, remedy, ge=low, le=high, allow_inf_nan=False)


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Text


class GenerationRequest(BaseModel):
    """A prompt or messages, and how the answer is chosen; `docs/generation.md` says what each field does.

    Exactly one of `prompt` and `messages` is given. A default never changes within a major version, because
    writers leave out what was not set. The fields of `NEUTRAL` are None unless set: the base's own default
    then holds, if the pool takes them. A new field needs a line here, one in `RequestKeywords`, and its
    namesake in the engine's `SamplingParams`; nothing between names it (`docs/extending.md`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text | None = described(None, "the text to continue", "give a non-empty string")
    messages: tuple[Message, ...] | None = described(
        None,
        "a chat, in place of a prompt",
        f"give a list of at most {MAX_MESSAGES} {{'role': 'system' | 'user' | 'assistant', 'content': text}}",
        max_length=MAX_MESSAGES,
    )
    adapter_scale: float = number(
        1.0,
        "multiplies what the adapter adds; 1 as trained",
        f"give a number from {-MAX_ADAPTER_SCALE:g} to {MAX_ADAPTER_SCALE:g}, 1 for the adapter as trained",
        low=-MAX_ADAPTER_SCALE,
        high=MAX_ADAPTER_SCALE,
    )
    max_tokens: int = described(
        128, "at most so many new tokens", f"give a whole number from 1 to {MAX_TOKENS}", ge=1, le=MAX_TOKENS
    )
    temperature: float = number(
        0.0,
        "divides the logits; 0 is greedy",
        f"give a number from 0 (greedy) to {MAX_TEMPERATURE:g}",
        low=0.0,
        high=MAX_TEMPERATURE,
    )
    top_p: float | None = described(
        None,
        "keep the most likely tokens up to this probability",
        "give a number above 0 and up to 1",
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
    )
    top_k: TopK | None = described(
        None,
        "keep so many of the most likely tokens; 0 keeps all",
        "give a whole number, 0 to keep every token",
    )
    min_p: float | None = number(
        None,
        "drop tokens less likely than this share of the most likely one",
        "give a number from 0 to 1",
        low=0.0,
        high=1.0,
    )
    seed: int | None = described(
        None,
        "makes sampling repeatable",
        "give a whole number from 0 to 2**63 - 1, or None",
        ge=0,
        lt=2**63,
    )
    stop: tuple[StopString, ...] = described(
        (),
        "end before this text",
        f"give a list of at most {MAX_STOP_STRINGS} non-empty strings of at most {MAX_STOP_STRING_CHARS} "
        "characters",
        max_length=MAX_STOP_STRINGS,
    )
    stop_token_ids: tuple[TokenId, ...] = described(
        (),
        "end after this token",
        f"give a list of at most {MAX_STOP_TOKEN_IDS} token ids",
        max_length=MAX_STOP_TOKEN_IDS,
    )
    include_stop_str_in_output: bool = described(
        False, "leave the stop string in the text", "give true or false"
    )
    ignore_eos: bool = described(False, "go on past the end-of-sequence tokens", "give true or false")
    min_tokens: int = described(
        0,
        "forbid any end for so many tokens",
        "give a whole number from 0 to max_tokens",
        ge=0,
        le=MAX_TOKENS,
    )
    repetition_penalty: float | None = number(
        None,
        "divide the logits of tokens seen in prompt or output",
        "give a number from 0.01 to 100, 1 for none",
        low=0.01,
        high=100.0,
    )
    presence_penalty: float = number(
        0.0,
        "take this from the logits of tokens seen in the output",
        "give a number from -2 to 2, 0 for none",
        low=-2.0,
        high=2.0,
    )
    frequency_penalty: float = number(
        0.0,
        "take this from them once for each time they were seen",
        "give a number from -2 to 2, 0 for none",
        low=-2.0,
        high=2.0,
    )
    logit_bias: dict[TokenId, Bias] = described(
        {},
        "token id to number, added to that logit",
        f"give a dict of at most {MAX_LOGIT_BIASES} token ids to numbers from -100 to 100",
        max_length=MAX_LOGIT_BIASES,
    )
    bad_words: tuple[BadWord, ...] = described(
        (),
        "never complete this word",
        f"give a list of at most {MAX_BAD_WORDS} non-empty strings of at most {MAX_BAD_WORD_CHARS} "
        "characters",
        max_length=MAX_BAD_WORDS,
    )
    skip_special_tokens: bool = described(True, "leave special tokens out of the text", "give true or false")
    structured_outputs: StructuredOutputs | None = described(
        None,
        "the form of the answer: one of json, regex, choice and grammar",
        "give one of {'json': {...}}, {'regex': ''}, {'choice': [...]}, {'grammar': ''}",
    )
    stream: bool = described(False, "tokens can be had while the job runs", "give True or False")

    @property
    def prompt_bytes(self) -> int:
        """The bytes of the prompt, or of all messages together."""
        if self.prompt is not None:
            return len(self.prompt.encode())
        return sum(len(message.content.encode()) for message in self.messages or ())

    @property
    def est_tokens(self) -> int:
        """Tokens of the prompt, estimated by its bytes, and those that may be generated."""
        return max(1, math.ceil(self.prompt_bytes / BYTES_PER_TOKEN)) + self.max_tokens

    def request_json(self) -> str:
        """Render what was set, as the ledger keeps it; the fields of a subclass are left out."""
        return self.model_dump_json(include=_request_fields(), exclude_unset=True, exclude_none=True)

    @field_validator("prompt")
    @classmethod
    def _prompt_has_room(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt:
            raise ValueError("the prompt is empty: give at least one character")
        if prompt is not None and (size := len(prompt.encode())) > MAX_PROMPT_BYTES:
            raise ValueError(f"the prompt has {size} bytes, the limit is {MAX_PROMPT_BYTES}: shorten it")
        return prompt

    @model_validator(mode="after")
    def _minimum_fits(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}: lower the first or "
                "raise the second"
            )
        return self

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.messages is None:
            return self
        if not self.messages:
            raise ValueError("messages is empty: give at least one message")
        if self.prompt_bytes > MAX_PROMPT_BYTES:
            raise ValueError(
                f"the messages have {self.prompt_bytes} bytes, the limit is {MAX_PROMPT_BYTES}: shorten them"
            )
        return self


@cache
def _request_fields() -> set[str]:
    return set(GenerationRequest.model_fields)


class RequestKeywords(TypedDict, total=False):
    """The same fields as keywords of a call; a test holds the two together."""

    messages: Sequence[Message | Mapping[str, str]] | None
    adapter_scale: float
    max_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop_str_in_output: bool
    ignore_eos: bool
    min_tokens: int
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    bad_words: Sequence[str]
    skip_special_tokens: bool
    structured_outputs: StructuredOutputs | Mapping[str, Any] | None
    stream: bool
