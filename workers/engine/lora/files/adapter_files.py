"""Where an adapter's files are in its folder, and what state they are in; nothing here parses them."""

from __future__ import annotations

import re
from pathlib import Path

from workers.engine.core.errors import AdapterFileError, AdapterIOError, AdapterNotFound

CONFIG_NAME = "adapter_config.json"
_WEIGHTS = re.compile(r"adapter_model(?:-(?P<index>\d+)-of-(?P<count>\d+))?\.safetensors")
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
        raise AdapterFileError(
            f"{label}: {CONFIG_NAME} is missing from {path}; give a folder that PEFT's save_pretrained wrote"
        )
    weights = sorted(name for name in names if _WEIGHTS.fullmatch(name))
    if not weights:
        _refuse_without_weights(names, label, path)
    _require_all_shards(weights, label)
    return [path / name for name in sorted([CONFIG_NAME, *weights])]


def read_files(path: Path, label: str) -> dict[str, bytes]:
    """Return the bytes of the adapter's files by name, so that what is hashed is what is parsed."""
    files = find_files(path, label)
    try:
        return {file.name: file.read_bytes() for file in files}
    except FileNotFoundError as error:
        raise AdapterFileError(f"{label}: {error.filename} vanished while it was read; restore it") from error
    except OSError as error:
        raise AdapterIOError(f"{label}: reading {path} failed ({error}); trying again may help") from error


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
    raise AdapterFileError(
        f"{label}: adapter_model.safetensors is missing from {path}; save the adapter again"
    )


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
    missing = sorted(set(range(1, max(counts) + 1)) - present)
    if len(counts) > 1 or missing:
        raise AdapterFileError(
            f"{label}: of {max(counts)} weight shards these are missing: {missing or 'unclear'}; "
            "copy the adapter again"
        )
