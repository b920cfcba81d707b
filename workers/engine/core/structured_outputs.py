"""What an answer must follow: a JSON schema, a regular expression, a choice or a grammar."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from workers.engine.core.errors import InvalidParams

MAX_GRAMMAR_BYTES = 65_536
MAX_REGEX_BYTES = 4096
MAX_CHOICES = 1024
MAX_JSON_DEPTH = 64


class GrammarSpec(NamedTuple):
    """One grammar as text: "json", "regex", "choice" (a JSON list) or "grammar" (Lark)."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """Named as in vLLM; exactly one is given. `json` is a schema as a dict or as text."""

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("json", "regex", "choice", "grammar") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidParams(
                f"structured_outputs has {', '.join(given) or 'nothing'}; "
                "give exactly one of json, regex, choice and grammar"
            )
        self._require_size()

    def _require_size(self) -> None:
        kind, text = self.source
        limit = MAX_REGEX_BYTES if kind == "regex" else MAX_GRAMMAR_BYTES
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidParams(
                f"the {kind} holds a lone surrogate at position {error.start}; remove it"
            ) from error
        if not 1 <= size <= limit:
            raise InvalidParams(f"the {kind} has {size} bytes; give 1 to {limit}")

    @property
    def source(self) -> GrammarSpec:
        """The grammar as text, JSON without blanks, the same for what means the same."""
        if self.json is not None:
            return GrammarSpec("json", _schema_text(self.json))
        if self.choice is not None:
            return GrammarSpec("choice", _choice_text(self.choice))
        kind, text = ("regex", self.regex) if self.regex is not None else ("grammar", self.grammar)
        if not isinstance(text, str):
            raise InvalidParams(f"{kind} is {type(text).__name__}; give a string")
        return GrammarSpec(kind, text)


def _schema_text(schema: object) -> str:
    try:
        if isinstance(schema, str) and len(schema) > MAX_GRAMMAR_BYTES:
            raise ValueError(f"it has {len(schema)} characters, at most {MAX_GRAMMAR_BYTES}")
        parsed = json_text.loads(schema) if isinstance(schema, str) else schema
        if isinstance(parsed, Mapping) and _depth(parsed) <= MAX_JSON_DEPTH:
            return json_text.dumps(dict(parsed), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParams(
            f"the JSON schema cannot be read: {error}; give a dict or its JSON text"
        ) from error
    raise InvalidParams(
        f"the JSON schema is not an object nested at most {MAX_JSON_DEPTH} deep; give a dict or its JSON text"
    )


def _depth(value: object) -> int:
    """Return how deep the value is nested, or a number above the limit."""
    depth, level = 0, [value]
    while depth <= MAX_JSON_DEPTH and (nested := [one for one in level if isinstance(one, Mapping | list)]):
        depth += 1
        level = [item for one in nested for item in (one.values() if isinstance(one, Mapping) else one)]
    return depth


def _choice_text(choice: object) -> str:
    if isinstance(choice, str) or not isinstance(choice, Sequence):
        raise InvalidParams(f"choice is {choice!r:.80}; give a list of strings")
    if not 1 <= len(choice) <= MAX_CHOICES:
        raise InvalidParams(f"choice has {len(choice)} strings; give 1 to {MAX_CHOICES}")
    for one in choice:
        if not isinstance(one, str) or not one:
            raise InvalidParams(f"choice holds {one!r:.80}; give non-empty strings")
    return json_text.dumps(list(choice), ensure_ascii=False, separators=(",", ":"))
