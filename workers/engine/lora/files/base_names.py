"""Whether the name that an adapter gives its base can be that of the base that is served.

Trainers write one model in many ways: the hub's name, a mirror's, a quantised copy's, a cache folder, a
URL, a folder of their own. Owners, folders, case, separators and words for a numeric format are set aside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

_SEPARATORS = re.compile(r"[\s._-]+")
_FORMAT = re.compile(
    r"(?:-(?:unsloth|bnb|[2-8]-?bits?|nf4|fp4|mxfp4|int[48]|fp8|bf16|fp16|fp32|awq|gptq|gptqmodel|gguf|mlx|hf|marlin"
    r"|quantized|w\d+a\d+|g\d{2,3}|q\d(?:-[0-9a-z])*|dynamic))+$"
)
"""Words at the end of a name that say how the weights are stored, or in whose layout, not which they are."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_URL = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.(?:cn|ai)/models)/")
_NO_OWNERS = frozenset({
    ".", "..", "artifacts", "base", "cache", "checkpoint", "checkpoints", "ckpt", "ckpts", "content", "data",
    "exp", "experiments", "finetuned", "home", "lora", "merged", "mnt", "model", "models", "opt", "out",
    "output", "outputs", "result", "results", "root", "run", "runs", "save", "saved", "saves", "sft",
    "scratch", "tmp", "train", "trained", "training", "weights", "work", "workspace",
})  # fmt: skip
"""What people call the folder that they keep models in: "outputs/sft" is no name of the hub's."""

_NO_NAME = re.compile(
    r"(?:base|model|merged|final|output|outputs|latest|last|best|main|master|checkpoint|sft|dpo|snapshot"
    r"|adapter|\d+|(?:checkpoint|step|epoch|global-step)-\d+|[0-9a-f]{32,64})(?:-merged|-model)?"
)
"""What people call any model's folder."""

_SERIES = (
    "llama|tinyllama|codellama|qwen|qwq|mistral|mixtral|ministral|codestral|gemma|codegemma|phi|smollm|olmo|olmoe"
    "|granite|glm|chatglm|deepseek|gpt|falcon|yi|internlm|baichuan|starcoder|stablelm|bloom|pythia|mpt"
)
_PUBLISHED_WORD = re.compile(
    rf"(?:{_SERIES})v?\d*|v?\d+|\d+x\d+[bm]|a?\d+[bmk]|base|instruct|chat|it|pt|inst|mini|small|medium|large|tiny"
    "|nemo|moe|coder|code|math|oss|thinking|preview|distill|r1|e|text"
)
_SERIES_WORD = re.compile(rf"(?:{_SERIES})v?\d*")


class BaseMatch(Enum):
    """What an adapter's word for its base says of the one that is served."""

    SAME = "same"
    PARENT = "parent"  # the one that the served base says it was made from
    UNKNOWN = "unknown"  # a name that tells nothing, or a base that has none
    OTHER = "other"


def compare_base(
    trained_on: str,
    *,
    names: Sequence[str],  # of the served base, those it has of its own
    parent: str = "",  # what its config.json says that it was loaded from
    checkpoint: str = "",  # its folder; empty means unknown
    is_named: bool,  # whether one of its names says which model it is
) -> BaseMatch:
    """Compare an adapter's `base_model_name_or_path` with the served base."""
    if not trained_on:
        return BaseMatch.UNKNOWN
    if same_checkpoint(trained_on, checkpoint):
        return BaseMatch.SAME
    key = model_key(trained_on)
    if key in map(model_key, names):
        return BaseMatch.SAME if is_named or not _NO_NAME.fullmatch(key) else BaseMatch.UNKNOWN
    if parent and key == model_key(parent):
        return BaseMatch.PARENT if any(map(is_published, names)) else BaseMatch.SAME
    return BaseMatch.OTHER if is_named and is_published(trained_on) else BaseMatch.UNKNOWN


def model_key(name: str) -> str:
    """Return what one model's names have in common, such as "llama-3-1-8b-instruct"."""
    # ModelScope's cache writes a dot as three underscores.
    last = (hub_name(name) or _slashed(name)).rpartition("/")[2].replace("___", ".")
    words = _SEPARATORS.sub("-", last.casefold()).strip("-")
    return (_FORMAT.sub("", words) or words).removeprefix("meta-")


def is_published(name: str) -> bool:
    """Tell whether a name says which of the published models it means; a folder of one's own does not."""
    key = model_key(name)
    if not key or _NO_NAME.fullmatch(key):
        return False
    if hub_name(name) is not None:
        return True
    words = key.split("-")
    is_known = all(map(_PUBLISHED_WORD.fullmatch, words)) and any(map(_SERIES_WORD.fullmatch, words))
    return is_known and any(character.isdigit() for character in key)


def hub_name(name: str) -> str | None:
    """Return "owner/name" for a name of the hub, its URL or a path into a cache; None for anything else."""
    path = _slashed(name)
    if url := _HUB_URL.match(path):
        return "/".join(path[url.end() :].split("/")[:2])
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
        if part == "snapshots" and index and "--" in parts[index - 1]:
            return parts[index - 1].replace("--", "/", 1)
        if part == "modelscope" and parts[index + 1 : index + 2] == ["hub"]:
            cached = [folder for folder in parts[index + 2 :] if folder != "models"]
            return "/".join(cached[:2]) if len(cached) > 1 else None
    is_hub_id = _HUB_ID.fullmatch(path) is not None and parts[0].casefold() not in _NO_OWNERS
    return path if is_hub_id else None


def base_name(model_dir: str | Path) -> str:
    """Return a checkpoint folder's model name; a cache folder gives the hub's name."""
    path = Path(model_dir).absolute()
    return hub_name(str(path)) or path.name


def same_checkpoint(one: str, folder: str) -> bool:
    """Tell whether a path, as a trainer on this machine wrote it, is the checkpoint's folder.

    Links are followed. A relative path may have been written from any folder: the end of `folder` is enough.
    """
    if not one or not folder:
        return False
    with suppress(OSError, ValueError):  # a NUL or a lone surrogate is in no path
        # Path.resolve would raise on a loop of links.
        path, real_folder = Path(one), Path(os.path.realpath(folder))
        if Path(os.path.realpath(one)) == real_folder:
            return True
        ends = tuple(part for part in path.parts if part != os.pardir)
        return not path.is_absolute() and any(
            served.parts[-len(ends) :] == ends for served in (Path(folder).absolute(), real_folder)
        )
    return False


def _slashed(name: str) -> str:
    return name.replace("\\", "/").rstrip("/")
