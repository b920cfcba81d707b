"""The form that an answer must have: a JSON schema, a regular expression, a choice or a grammar."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import to_json

from lorayard.contract.storable import check_json, storable_text

MAX_GRAMMAR_BYTES = 65_536
MAX_CHOICES = 1024

FormText = Annotated[str, AfterValidator(storable_text), Field(min_length=1)]


class StructuredOutputs(BaseModel):
    """Exactly one of the four is given; the worker compiles it and refuses what it cannot serve.

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
        check_json(self.json_schema, "json")
        if (size := len(to_json(given))) > MAX_GRAMMAR_BYTES:
            name = next(iter(given))
            raise ValueError(f"the {name} has {size} bytes, at most {MAX_GRAMMAR_BYTES}: simplify it")
        return self

    def forms(self) -> dict[str, Any]:
        """Return the four by the names that the engine knows them by."""
        return {
            "json": self.json_schema,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
