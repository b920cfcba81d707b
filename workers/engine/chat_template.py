"""Renders chat messages with the checkpoint's own template, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.engine.errors import CheckpointError, InvalidPrompt

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template and the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"chat template, line {error.lineno}: {error.message}; repair the checkpoint's chat template"
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt for `messages`, ending where the model's answer begins."""
        if not messages:
            raise InvalidPrompt("messages is empty; give at least one message")
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._special_tokens
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidPrompt(f"the chat template refused the messages: {error}") from error


def load_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the checkpoint's template, from its own file or from tokenizer_config.json, if it has one."""
    own_file = folder / "chat_template.jinja"
    source = own_file.read_text(encoding="utf-8") if own_file.is_file() else _inline_source(tokenizer_config)
    return None if source is None else ChatTemplate(source, _special_tokens(tokenizer_config))


def _inline_source(tokenizer_config: Mapping[str, Any]) -> str | None:
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):  # older checkpoints name several templates
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = tokenizer_config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
        autoescape=False,
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
