"""What a producer asks for: one generation job, validated before it leaves the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic_core import to_json

from lorayard.contract.request import GenerationRequest, RequestKeywords, Text, described
from lorayard.contract.storable import check_json, storable_text

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

MAX_METADATA_BYTES = 16_384

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w][\w.:/@+-]*$")]
_NAME_REMEDY = (
    "use 1 to 200 letters, digits and . _ : / @ + -, beginning with a letter, a digit or an underscore"
)


class JobSpec(GenerationRequest):
    """One generation job, as its producer describes it: the request, and how the job is routed.

    `adapter=None` asks for the base model. `deadline_s` counts from submission and covers waiting for the
    first token. Raises pydantic's ValidationError, which `Client` turns into `InvalidJob`.
    """

    adapter: Name | None = described(
        None, "the adapter's name; none is the base model", f"{_NAME_REMEDY}, or None for the base model"
    )
    priority: Priority = described("normal", "high, normal or low", "give 'high', 'normal' or 'low'")
    deadline_s: float | None = described(
        None,
        "first token within so many seconds",
        "give seconds above 0 and up to 2592000 (30 days), or None",
        gt=0.0,
        le=30 * 86_400,
        allow_inf_nan=False,
    )
    tenant: Name = described("default", "whom the job belongs to", _NAME_REMEDY)
    callback_url: str | None = described(
        None,
        "receives a signed webhook at the end",
        "give an http(s) URL of at most 2048 characters, e.g. https://example.com/hook",
        max_length=2048,
    )
    idempotency_key: Annotated[Text, Field(min_length=1, max_length=500)] | None = described(
        None, "the same key is the same job", "give 1 to 500 characters, or None"
    )
    metadata: dict[str, JsonValue] = described(
        {},
        "a JSON object that comes back with the result",
        "give a dict of JSON values with string keys, nested at most 64 deep",
    )

    @field_validator("callback_url")
    @classmethod
    def _callback_is_a_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not _is_http_url(storable_text(url)):
            raise ValueError(
                f"callback_url {url!r} is not an http(s) URL with a host: give e.g. https://example.com/hook"
            )
        return url

    @field_validator("metadata")
    @classmethod
    def _metadata_is_storable(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        check_json(metadata, "metadata")
        return metadata

    @model_validator(mode="after")
    def _scale_has_an_adapter(self) -> Self:
        if self.adapter is None and self.adapter_scale != 1.0:
            raise ValueError(
                f"adapter_scale={self.adapter_scale} without an adapter: name one, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _metadata_has_room(self) -> Self:
        if self.metadata and (size := len(to_json(self.metadata))) > MAX_METADATA_BYTES:
            raise ValueError(
                f"metadata has {size} bytes as JSON, at most {MAX_METADATA_BYTES}: store a reference"
            )
        return self


class JobKeywords(RequestKeywords, total=False):
    """The fields of a job, all but the prompt, as keywords of a call; a test holds the two together."""

    adapter: str | None
    priority: Priority
    deadline_s: float | None
    tenant: str
    callback_url: str | None
    idempotency_key: str | None
    metadata: Mapping[str, Any] | None


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that does not close, a port that is not a number
        return False
