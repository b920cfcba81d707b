"""Reads a checkpoint's safetensors files by tensor name, checking every name and shape."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workers.engine.core.errors import CheckpointError
from workers.engine.core.json_files import is_there, read_json

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2}  # of an element, as the file names its type; others: 1
_COMPARED_ROWS = 4096  # at a time: a vocabulary's two matrices can be gigabytes
_OWN_MAP_BYTES = 1 << 18
"""A tensor of so many bytes is mapped by itself, so that its part of the file leaves memory with it."""

_MAX_OWN_MAPS = 300  # of one file: each reads the header again, which is long where tensors are many
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)  # recomputed from rope_theta; old exports still carry it

Member = tuple[int, int]
"""Which one of how many tensors that a file holds as one stack, along its first dimension."""


class CheckpointReader:
    """Gives out tensors by name; `require_all_read` refuses leftovers, which would be silently ignored."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._files: dict[Path, Any] = {}
        self._num_own_maps: Counter[Path] = Counter()
        self._place_of = self._locate()
        self._unread = {name for name in self._place_of if not name.endswith(_IGNORED_SUFFIXES)}

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of this name."""
        return name in self._place_of

    def read(self, name: str, shape: tuple[int, ...], member: Member | None = None) -> Tensor:
        """Return the tensor on the engine's device, in its dtype; a shape other than expected is refused."""
        return self.read_float(name, shape, member).to(device=self._device, dtype=self._dtype)

    def read_float(self, name: str, shape: tuple[int, ...], member: Member | None = None) -> Tensor:
        """Return the tensor in host memory and in the file's dtype, which must be a floating-point one."""
        return self.read_stored(name, shape, _FLOAT_DTYPES, member)

    def read_stored(
        self,
        name: str,
        shape: tuple[int, ...] | None,
        dtypes: tuple[torch.dtype, ...],
        member: Member | None = None,
    ) -> Tensor:
        """Return the tensor as the file has it, in one of these dtypes; a shape of None means any.

        Of a stack that the file holds only the `member` is read, which has the shape.
        """
        path = self._place_of.get(name)
        if path is None:
            raise CheckpointError(
                f"{self._folder}: tensor {name!r} is missing; download the checkpoint again"
            )
        if member is not None and shape is not None:
            self._require_shape(name, tuple(self._slice(name).get_shape()), (member[1], *shape))
        tensor = self._get(path, name, member)
        if member is None and shape is not None:
            self._require_shape(name, tuple(tensor.shape), shape)
        if tensor.dtype not in dtypes:
            *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise CheckpointError(
                f"{self.place(name)} has dtype {tensor.dtype}; "
                f"give {' or '.join(filter(None, (', '.join(others), last)))}"
            )
        self._unread.discard(name)
        return tensor

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors that the checkpoint holds have one shape and the same values."""
        slices = [self._slice(name) for name in (one, other)]
        shape, other_shape = (part.get_shape() for part in slices)
        return shape == other_shape and all(
            torch.equal(*(part[row : row + _COMPARED_ROWS].float() for part in slices))
            for row in range(0, shape[0], _COMPARED_ROWS)
        )

    def place(self, name: str) -> str:
        """Say where a tensor is, for messages."""
        return f"{self._place_of.get(name, self._folder)}: {name!r}"

    def ignore(self, name: str) -> None:
        """Mark a tensor as known and not needed."""
        self._unread.discard(name)

    def require_all_read(self) -> None:
        """Refuse a checkpoint with tensors that this model has no place for."""
        if self._unread:
            first = ", ".join(sorted(self._unread)[:5])
            raise CheckpointError(
                f"{self._folder}: tensors without a place in this model: {len(self._unread)} ({first}); "
                "the checkpoint is of another architecture"
            )

    def _require_shape(self, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found != shape:
            raise CheckpointError(
                f"{self.place(name)} has shape {found}, config.json implies {shape}; "
                "use the config and the weights of the same checkpoint"
            )

    def _get(self, path: Path, name: str, member: Member | None) -> Tensor:
        try:
            if member is not None:
                return self._slice(name)[member[0]]
            return self._file_for(path, name).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: cannot read {name!r}: {error}; download the file again"
            ) from error

    def _file_for(self, path: Path, name: str) -> Any:
        """Return the file, mapped anew for a large tensor: once that is copied, its pages go."""
        num_bytes = _BYTES.get(self._slice(name).get_dtype(), 1) * math.prod(self._slice(name).get_shape())
        if num_bytes < _OWN_MAP_BYTES or self._num_own_maps[path] >= _MAX_OWN_MAPS:
            return self._open(path)
        self._num_own_maps[path] += 1
        return safe_open(path, framework="pt")

    def _slice(self, name: str) -> Any:
        return self._open(self._place_of[name]).get_slice(name)

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} cannot be opened: {error}; download the file again") from error
        return self._files[path]

    def _locate(self) -> dict[str, Path]:
        """Return each tensor's file; as in transformers, an index beside model.safetensors is stale."""
        single, index = self._folder / SINGLE_FILE, self._folder / INDEX_FILE
        if is_there(single):
            return dict.fromkeys(self._open(single).keys(), single)
        if not is_there(index):
            raise CheckpointError(
                f"{self._folder} holds neither {SINGLE_FILE} nor its index; "
                "convert the checkpoint to safetensors"
            )
        return self._locate_in_shards(_shards_of(index), index)

    def _locate_in_shards(self, shards: list[Path], index: Path) -> dict[str, Path]:
        """Return what the shards hold: like transformers, this takes from the index their names alone."""
        place_of: dict[str, Path] = {}
        for path in shards:
            names = self._open(path).keys()
            if twice := sorted(place_of.keys() & set(names)):
                raise CheckpointError(
                    f"{index} names {place_of[twice[0]].name} and {path.name}, and both hold {twice[0]!r}: "
                    "the index goes by its own entry, transformers by the last file; remove the shards of an "
                    "older save and what the index says of them"
                )
            place_of |= dict.fromkeys(names, path)
        return place_of


def _shards_of(index: Path) -> list[Path]:
    try:
        files = set((read_json(index) or {})["weight_map"].values())
        shards = sorted(index.parent / Path(file) for file in files)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index: its weight_map does not name a file for each tensor; download the "
            "file again"
        ) from error
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise CheckpointError(f"{index} names {file!r}, outside its folder; download the file again")
    for path in shards:
        if not is_there(path):
            raise CheckpointError(f"{path} is missing, though the index names it; download the file again")
    return shards


def holds_weights(folder: Path) -> bool:
    """Whether there is anything to read in a folder, or its configuration alone."""
    return any(is_there(folder / name) for name in (SINGLE_FILE, INDEX_FILE))
