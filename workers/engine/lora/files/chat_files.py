"""What a folder's files say of chats and of the ends of answers, be it a base's or an adapter's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.engine.core.errors import AdapterError
from workers.engine.core.json_files import is_there
from workers.engine.lora.files.regular_files import read_regular
from workers.engine.text.template_source import TEMPLATE_FILE, inline_template

_MAX_BYTES = 4 << 20
_TOKENIZER, _GENERATION = "tokenizer_config.json", "generation_config.json"


@dataclass(frozen=True, slots=True)
class ChatFiles:
    """Empty or None is what a folder says nothing of; `unread` are the files that cannot be read."""

    template: str = ""
    eos: str = ""
    eos_ids: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()


def read_chat_files(folder: Path) -> ChatFiles:
    """Read them; CheckpointError for one that is not a regular file."""
    unread: list[str] = []
    tokenizer = _read_json(folder / _TOKENIZER, unread)
    eos, eos_ids = tokenizer.get("eos_token"), _read_json(folder / _GENERATION, unread).get("eos_token_id")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    template = _read_text(folder / TEMPLATE_FILE, unread) or inline_template(tokenizer)
    return ChatFiles(
        template=template if isinstance(template, str) else "",
        eos=eos if isinstance(eos, str) else "",
        eos_ids=tuple(
            one for one in (eos_ids if isinstance(eos_ids, list) else [eos_ids]) if isinstance(one, int)
        ),
        unread=tuple(unread),
    )


def _read_json(path: Path, unread: list[str]) -> dict[str, Any]:
    text = _read_text(path, unread)
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        unread.append(path.name)
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(path: Path, unread: list[str]) -> str | None:
    if not is_there(path):
        return None
    try:
        return read_regular(path, path.name, max_bytes=_MAX_BYTES).decode()
    except (AdapterError, OSError, UnicodeDecodeError):
        unread.append(path.name)
        return None
