"""What an adapter's owner should know although it is served: its base's name, and files that are not used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workers.engine.core.errors import AdapterBaseMismatch, AdapterError
from workers.engine.lora.files.base import BaseDescription
from workers.engine.lora.files.base_names import BaseMatch
from workers.engine.lora.files.regular_files import read_regular

_MAX_BYTES = 4 << 20
_TOKENIZER, _GENERATION, _TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"


def base_notices(trained_on: str, base: BaseDescription, label: str) -> tuple[str, ...]:
    """Return what is uncertain about an adapter's base; AdapterBaseMismatch if it is known to be another."""
    served = f"{base.name!r:.200}"
    match = base.compare(trained_on)
    if match is BaseMatch.SAME:
        return ()
    if match is BaseMatch.OTHER:
        raise AdapterBaseMismatch(
            f"{label}: it was trained on {trained_on!r:.200}, but {served} is served; use an adapter of this "
            "base, or, if both are one model, say so: --base-name of `lorayard adapters add`, "
            "base_model_name of a LoRARequest, or serve it under the adapter's name for it "
            "(served_model_name, in the pipeline LORAYARD_SERVED_MODEL_NAME)"
        )
    compared = "only the shapes were compared"
    if match is BaseMatch.PARENT:
        made_from = "which this base's config.json says that it was made from"
        return (f"it was trained on {trained_on!r:.200}, {made_from}; {served} is served, {compared}",)
    said = f"it calls its base {trained_on!r:.200}" if trained_on else "it does not name its base"
    return (f"{said}; whether that is {served} cannot be known, {compared}",)


def file_notices(folder: Path, base: BaseDescription) -> tuple[str, ...]:
    """Return what an adapter's folder ships that differs from the base's own, which is what is used."""
    if not base.checkpoint:
        return ()
    own, unread = _chat_files(folder)
    bases, _ = _chat_files(Path(base.checkpoint))
    notices = [f"it ships a {name} that cannot be read, and that is not used" for name in unread]
    template, eos, eos_ids = (own.get(key) for key in ("template", "eos", "eos_ids"))
    if template and template != bases.get("template"):
        notices.append(
            "it ships a chat template of its own, which is not used: chats are rendered by the base's; give "
            "it prompts that were rendered by its own"
        )
    if eos and eos != bases.get("eos"):
        notices.append(
            f"its tokenizer ends with {eos!r:.80}, the base's with {bases.get('eos')!r:.80}, which is what "
            "ends answers; give the adapter's in stop or stop_token_ids"
        )
    if eos_ids and not set(eos_ids) <= set(bases.get("eos_ids") or ()):
        notices.append(
            f"its generation_config.json ends with ids {eos_ids!r:.80}, the base's with "
            f"{bases.get('eos_ids')!r:.80}, which is what ends answers; give the adapter's in stop_token_ids"
        )
    return tuple(notices)


def _chat_files(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a folder says of chats and ends, and the names of files that cannot be read."""
    unread: list[str] = []
    tokenizer = _read_json(folder / _TOKENIZER, unread)
    generation = _read_json(folder / _GENERATION, unread)
    eos = tokenizer.get("eos_token")
    return {
        "template": _read_text(folder / _TEMPLATE, unread) or _default_template(tokenizer),
        "eos": eos.get("content") if isinstance(eos, dict) else eos,
        "eos_ids": _ids(generation.get("eos_token_id")) + _ids(_config_eos(folder)),
    }, unread


def _config_eos(folder: Path) -> object:
    return _read_json(folder / "config.json", []).get("eos_token_id")


def _default_template(tokenizer: dict[str, Any]) -> str | None:
    template = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int)]


def _read_json(path: Path, unread: list[str]) -> dict[str, Any]:
    text = _read_text(path, unread)
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        unread.append(path.name)
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(path: Path, unread: list[str]) -> str | None:
    if not path.is_file():
        return None
    try:
        return read_regular(path, path.name, max_bytes=_MAX_BYTES).decode()
    except (AdapterError, OSError, UnicodeDecodeError):
        unread.append(path.name)
        return None
