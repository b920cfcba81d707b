"""Renders chat messages with the checkpoint's own template, in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from workers.engine.core.errors import CheckpointError, InvalidPrompt
from workers.engine.core.json_files import is_there
from workers.engine.text.template_sandbox import rendered, sandbox
from workers.engine.text.template_source import TEMPLATE_FILE, inline_template

Message = Mapping[str, Any]
"""A role with its content: text, or a list of parts of type "text"."""

_READS_PARTS = re.compile(
    r"""content(['"]\])?\s+is\s+(not\s+)?(string|iterable)|in\s+\w+(\.|\[['"])content\b"""
)
"""How templates look that take a list of parts apart themselves."""
_WHAT_TEMPLATES_RAISE = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
)
_MAX_REASON_CHARS = 1000


class ChatTemplate:
    """A compiled template and the special tokens it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, file: str) -> None:
        """`file` is the name of the file that has it, for messages."""
        self._file = file
        self._special_tokens = dict(special_tokens)
        self._reads_parts = _READS_PARTS.search(source) is not None
        try:
            self._template = sandbox().from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"chat template, line {error.lineno}: {error.message}; repair the checkpoint's chat template"
            ) from error
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise CheckpointError(
                f"chat template: too deep or large to compile ({type(error).__name__}: {error}); repair the "
                "checkpoint's chat template"
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt for `messages`, ending where the model's answer begins."""
        if not messages:
            raise InvalidPrompt("messages is empty; give at least one message")
        values = {
            "messages": [self._plain(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
        }
        try:
            return rendered(partial(self._template.generate, values))
        except (SecurityError, RecursionError, MemoryError) as error:
            why = str(error) or "it takes too much memory; repair it"
            raise InvalidPrompt(
                f"the checkpoint's chat template ({self._file}) was stopped: {why}"
            ) from error
        except _WHAT_TEMPLATES_RAISE as error:
            why = str(error)[:_MAX_REASON_CHARS]
            raise InvalidPrompt(f"the chat template refused the messages: {why}") from error

    def _plain(self, message: Message) -> dict[str, Any]:
        """Check a message's form; a template that knows nothing of parts gets their texts in lines."""
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise InvalidPrompt(f"a message's role is {role!r:.80}; give text such as 'user'")
        if isinstance(content, list) and content and all(map(_is_text_part, content)):
            if not self._reads_parts:
                content = "\n".join(part["text"] for part in content)
        elif not isinstance(content, str):
            raise InvalidPrompt(
                f"a message's content is {content!r:.80}; give text, or parts {{'type': 'text', 'text': ...}}"
            )
        return {**message, "content": content}


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def load_chat_template(
    folder: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """Return the checkpoint's template, from its own file or from tokenizer_config.json, if it has one."""
    own_file = folder / TEMPLATE_FILE
    try:
        is_own = is_there(own_file)
        source = own_file.read_text(encoding="utf-8") if is_own else inline_template(tokenizer_config)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{own_file} is not UTF-8: {error}; download the checkpoint again") from error
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError(f"the chat template of {folder} is {source!r:.80}; give its text")
    return ChatTemplate(source, special_tokens, file=TEMPLATE_FILE if is_own else "tokenizer_config.json")
