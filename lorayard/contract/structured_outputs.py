"""The form that an answer must have: a JSON schema, a regular expression, a choice or a grammar."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, JsonValue, model_validator

from lorayard.contract.storable import check_json, storable_text

MAX_GRAMMAR_BYTES = 65_536
MAX_REGEX_BYTES = 4096
MAX_CHOICES = 1024

FormText = Annotated[str, AfterValidator(storable_text), Field(min_length=1)]


class StructuredOutputs(BaseModel):
    """Exactly one of the four is given; the worker compiles it and refuses what it cannot serve.

    Forms, sizes and depths that the engine does not take are refused here already, by the same measure.

    `json_schema` is also known as `json`, a name that pydantic's models have taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    json_schema: dict[str, JsonValue] | FormText | None = Field(
        default=None, validation_alias=AliasChoices("json", "json_schema")
    )
    regex: FormText | None = None
    choice: tuple[FormText, ...] | None = Field(default=None, min_length=1, max_length=MAX_CHOICES)
    grammar: FormText | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name: value for name, value in self.forms().items() if value is not None}
        if len(given) != 1:
            names = ", ".join(given) or "none"
            raise ValueError(f"{names} given: give exactly one of json, regex, choice and grammar")
        ((name, value),) = given.items()
        limit = MAX_REGEX_BYTES if name == "regex" else MAX_GRAMMAR_BYTES
        if (size := len(_text(name, value).encode())) > limit:
            raise ValueError(f"the {name} has {size} bytes, at most {limit}: simplify it")
        return self

    def forms(self) -> dict[str, Any]:
        """Return the four by the names that the engine knows them by."""
        return {
            "json": self.json_schema,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }


def _text(name: str, value: Any) -> str:
    """Write a form as the engine measures it: JSON without blanks, a pattern or grammar as it is."""
    if name in ("regex", "grammar"):
        return str(value)
    form = _schema(value) if name == "json" else list(value)
    return json.dumps(form, separators=(",", ":"), ensure_ascii=False)


def _schema(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        if len(value) > MAX_GRAMMAR_BYTES:
            raise ValueError(
                f"the json has {len(value)} characters, at most {MAX_GRAMMAR_BYTES}: simplify it"
            )
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"the json cannot be read as JSON ({error}): give a dict or its JSON text"
            ) from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"the json is a {kind}: give a JSON object as a dict or as text")  # noqa: TRY004
    check_json(value, "json")
    return value
