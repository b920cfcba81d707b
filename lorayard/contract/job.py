"""What a producer asks for: one generation job, validated before it leaves the process."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic_core import to_json

from lorayard.contract.sampling import SamplingOptions
from lorayard.contract.storable import check_json, storable_text
from lorayard.contract.structured_outputs import StructuredOutputs

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

MAX_PROMPT_BYTES = 1_000_000
MAX_METADATA_BYTES = 16_384
MAX_STOP_STRINGS = 16
MAX_ADAPTER_SCALE = 100.0


Text = Annotated[str, AfterValidator(storable_text)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w][\w.:/@+-]*$")]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Text


class JobSpec(SamplingOptions):
    """One generation job, as its producer describes it.

    Exactly one of `prompt` and `messages` is given. `adapter=None` asks for the base model.
    `temperature=0` is greedy; the other parameters are told in `docs/generation.md`.
    `deadline_s` counts from submission and covers waiting for the first token.
    Raises pydantic's ValidationError, which `Client` turns into `InvalidJob`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text | None = None
    messages: tuple[Message, ...] | None = None
    adapter: Name | None = None
    adapter_scale: float = Field(
        default=1.0,
        ge=-MAX_ADAPTER_SCALE,
        le=MAX_ADAPTER_SCALE,
        allow_inf_nan=False,
        description="multiplies what the adapter adds; 1 as trained",
    )
    max_tokens: int = Field(default=128, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0.0, le=10.0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0, description="0 keeps every token")
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[Annotated[Text, Field(min_length=1, max_length=1000)], ...] = Field(
        default=(), max_length=MAX_STOP_STRINGS
    )
    stream: bool = Field(default=False, description="tokens can be had while the job runs")
    structured_outputs: StructuredOutputs | None = None
    priority: Priority = "normal"
    deadline_s: float | None = Field(default=None, gt=0.0, le=30 * 86_400, allow_inf_nan=False)
    tenant: Name = "default"
    callback_url: str | None = Field(default=None, max_length=2048)
    idempotency_key: Annotated[Text, Field(min_length=1, max_length=500)] | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("prompt")
    @classmethod
    def _prompt_has_room(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt:
            raise ValueError("the prompt is empty: give at least one character")
        if prompt is not None and (size := len(prompt.encode())) > MAX_PROMPT_BYTES:
            raise ValueError(f"the prompt has {size} bytes, the limit is {MAX_PROMPT_BYTES}: shorten it")
        return prompt

    @field_validator("bad_words")
    @classmethod
    def _bad_words_are_storable(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(storable_text(word) for word in words)

    @field_validator("callback_url")
    @classmethod
    def _callback_is_a_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not _is_http_url(storable_text(url)):
            raise ValueError(
                f"callback_url {url!r} is no http(s) URL with a host: give e.g. https://example.com/hook"
            )
        return url

    @field_validator("metadata")
    @classmethod
    def _metadata_is_storable(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        check_json(metadata, "metadata")
        return metadata

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
        if self.adapter is None and self.adapter_scale != 1.0:
            raise ValueError(
                f"adapter_scale={self.adapter_scale} without an adapter: name one, or leave it out"
            )
        if self.messages is not None:
            self._check_messages(self.messages)
        if (size := len(to_json(self.metadata))) > MAX_METADATA_BYTES:
            raise ValueError(
                f"metadata has {size} bytes as JSON, at most {MAX_METADATA_BYTES}: store a reference"
            )
        return self

    @staticmethod
    def _check_messages(messages: tuple[Message, ...]) -> None:
        if not messages:
            raise ValueError("messages is empty: give at least one message")
        if (size := sum(len(m.content.encode()) for m in messages)) > MAX_PROMPT_BYTES:
            raise ValueError(f"the messages have {size} bytes, the limit is {MAX_PROMPT_BYTES}: shorten them")


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that does not close, a port that is no number
        return False
