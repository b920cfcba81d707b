"""What an adapter's owner should know although it is served: its base's name, and files that are not used."""

from __future__ import annotations

from pathlib import Path

from workers.engine.core.errors import AdapterBaseMismatch, AdapterFileError, CheckpointError
from workers.engine.lora.files.base import BaseDescription
from workers.engine.lora.files.base_names import BaseMatch
from workers.engine.lora.files.chat_files import read_chat_files


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


def file_notices(folder: Path, base: BaseDescription, label: str) -> tuple[str, ...]:
    """Return what an adapter's folder ships that differs from the base's own, which is what is used.

    AdapterFileError for a file of these names that is not a regular one.
    """
    try:
        own = read_chat_files(folder)
    except CheckpointError as error:
        raise AdapterFileError(f"{label}: {error}") from error
    bases = base.chats
    if bases is None:
        return ()
    notices = [f"it ships a {name} that cannot be read, and that is not used" for name in own.unread]
    if own.template and own.template != bases.template:
        notices.append(
            "it ships a chat template of its own, which is not used: chats are rendered by the base's; give "
            "it prompts that were rendered by its own"
        )
    if own.eos and own.eos != bases.eos:
        notices.append(
            f"its tokenizer ends with {own.eos!r:.80}, the base's with {bases.eos!r:.80}, which is what "
            "ends answers; give the adapter's in stop or stop_token_ids"
        )
    if not set(own.eos_ids) <= set(bases.eos_ids):
        notices.append(
            f"its generation_config.json ends with ids {list(own.eos_ids)!r:.80}, the base's with "
            f"{list(bases.eos_ids)!r:.80}, which is what ends answers; give the adapter's in stop_token_ids"
        )
    return tuple(notices)
