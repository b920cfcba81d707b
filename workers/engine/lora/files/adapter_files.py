"""Where an adapter's files are in its folder, and what state they are in; nothing here parses them."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from workers.engine.core.errors import AdapterFileError, AdapterIOError, AdapterNotFound
from workers.engine.lora.files.foreign_folders import CONFIG_NAME, describe_contents
from workers.engine.lora.files.regular_files import read_regular, read_weights

MAX_CONFIG_BYTES = 8 << 20
"""Ranks of their own for the experts' modules in each of 48 layers take some 2 MiB."""
_MAX_WEIGHT_BYTES = 1 << 40
_WEIGHTS = re.compile(r"adapter_model(?:-(?P<index>\d+)-of-(?P<count>\d+))?\.safetensors")
_MAX_MISSING_SHOWN = 5
_PICKLES = (
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.ckpt",
    "adapter_model.pkl",
)

# (name, size, time of last change, inode) of each file that makes up the adapter
Stamp = tuple[tuple[str, int, int, int], ...]


def find_files(path: Path, label: str) -> list[Path]:
    """Return adapter_config.json and the weight files, by name; raise an AdapterError for what is missing."""
    names = _list_names(path, label)
    if CONFIG_NAME not in names:
        contents = describe_contents(path, names)
        raise AdapterFileError(f"{label}: {CONFIG_NAME} is missing from {path}: {contents}")
    weights = sorted(name for name in names if _WEIGHTS.fullmatch(name))
    if not weights:
        _refuse_without_weights(names, label, path)
    _require_all_shards(weights, label)
    return [path / name for name in sorted([CONFIG_NAME, *weights])]


def read_files(path: Path, label: str, *, max_bytes: int = _MAX_WEIGHT_BYTES) -> dict[str, bytes]:
    """Return the bytes of the adapter's files by name, so that what is hashed is what is parsed.

    All its weight files together may have `max_bytes`.
    """
    content: dict[str, bytes] = {}
    remaining = max_bytes
    try:
        for file in find_files(path, label):
            if file.name == CONFIG_NAME:
                content[file.name] = read_regular(file, label, max_bytes=MAX_CONFIG_BYTES)
                continue
            content[file.name] = read_weights(file, label, max_bytes=remaining)
            remaining -= len(content[file.name])
    except FileNotFoundError as error:
        raise AdapterFileError(f"{label}: {error.filename} vanished while it was read; restore it") from error
    except OSError as error:
        raise AdapterIOError(f"{label}: reading {path} failed ({error}); trying again may help") from error
    return content


def stamp(path: Path) -> Stamp | None:
    """Return what tells one state of the files from another, unread; None if they cannot be seen."""
    try:
        states = [
            (file.name, file.stat())
            for file in path.iterdir()
            if file.name == CONFIG_NAME or _WEIGHTS.fullmatch(file.name)
        ]
    except OSError:
        return None
    return tuple(sorted((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states))


def _list_names(path: Path, label: str) -> set[str]:
    try:
        return {entry.name for entry in path.iterdir()}
    except FileNotFoundError as error:
        raise AdapterNotFound(
            f"{label}: there is no folder {path}; check the path or add the adapter again"
        ) from error
    except NotADirectoryError as error:
        raise AdapterNotFound(
            f"{label}: {path} is a file; give the folder that holds {CONFIG_NAME}"
        ) from error
    except OSError as error:
        raise AdapterIOError(f"{label}: listing {path} failed ({error}); trying again may help") from error


def _refuse_without_weights(names: set[str], label: str, path: Path) -> None:
    for pickle in _PICKLES:
        if pickle in names:
            raise AdapterFileError(
                f"{label}: {pickle} is a pickle, which can run code when it is opened, and is never read; "
                "convert to safetensors (save_pretrained(..., safe_serialization=True))"
            )
    contents = describe_contents(path, names - {CONFIG_NAME})
    raise AdapterFileError(f"{label}: adapter_model.safetensors is missing from {path}: {contents}")


def _require_all_shards(weights: list[str], label: str) -> None:
    matches = [match for name in weights if (match := _WEIGHTS.fullmatch(name)) and match["index"]]
    if not matches:
        return
    if len(matches) != len(weights):
        raise AdapterFileError(
            f"{label}: holds both one weight file and shards ({', '.join(weights)}); keep one of them"
        )
    counts = {int(match["count"]) for match in matches}
    present = {int(match["index"]) for match in matches}
    num_shards = max(counts)
    if len(counts) == 1 and len(matches) == len(present) == num_shards == max(present):
        return
    # Lazily: a name may claim 10^12 shards.
    absent = (index for index in range(1, num_shards + 1) if index not in present)
    missing = list(islice(absent, _MAX_MISSING_SHOWN))
    raise AdapterFileError(
        f"{label}: of {num_shards} weight shards these are missing: {missing or 'unclear'}"
        f"{' and more' if num_shards - len(present) > len(missing) else ''}; copy the adapter again"
    )
