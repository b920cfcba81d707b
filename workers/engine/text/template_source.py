"""Where a folder's files have its chat template; who only compares templates compiles none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEMPLATE_FILE = "chat_template.jinja"


def inline_template(tokenizer_config: Mapping[str, Any]) -> object:
    """Return what stands for the template in tokenizer_config.json, text if all is well; None if nothing."""
    source = tokenizer_config.get("chat_template")
    if not isinstance(source, list):
        return source
    # Older checkpoints name several templates.
    named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}
    return named.get("default")
