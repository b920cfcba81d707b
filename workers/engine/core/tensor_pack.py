"""A tree of plain values and tensors as a small skeleton beside one contiguous buffer, and back as views."""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

ALIGN_BYTES = 64
"""Every tensor starts on a cache line, so kernels read a view as fast as a tensor of its own."""

_OWN_ROOTS = ("workers.engine.", "kernels.")


class _Place(NamedTuple):
    """Where a tensor lies in the buffer."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class TensorPack:
    """A tree whose tensors have been given places; nothing is copied before `write`.

    The tree may hold our dataclasses and NamedTuples, tuples, lists, dicts, strings, bytes, numbers and dense
    CPU tensors. A tensor that occurs more than once is stored once.
    """

    def __init__(self, tree: Any) -> None:
        self._tensors: list[tuple[_Place, Tensor]] = []
        self._place_of: dict[int, _Place] = {}
        self.num_bytes = 0
        stream = io.BytesIO()
        _SkeletonWriter(stream, self).dump(tree)
        self.skeleton: bytes = stream.getvalue()

    def write(
        self,
        buffer: Tensor,  # [at least num_bytes] uint8
    ) -> None:
        """Copy every tensor to its place; ValueError if the buffer is too small or of another kind."""
        _require_bytes(buffer, self.num_bytes)
        views = _Views(buffer)
        for place, tensor in self._tensors:
            views.at(place).copy_(tensor)

    def place(self, tensor: Tensor) -> _Place:
        """Give a tensor the next aligned place, or the one it has."""
        known = self._place_of.get(id(tensor))
        if known is not None:
            return known
        offset = -(-self.num_bytes // ALIGN_BYTES) * ALIGN_BYTES
        place = _Place(offset, tensor.dtype, tuple(tensor.shape))
        self._place_of[id(tensor)] = place
        self._tensors.append((place, tensor))
        self.num_bytes = offset + tensor.numel() * tensor.element_size()
        return place


def unpack(
    skeleton: bytes,
    buffer: Tensor,  # [num_bytes or more] uint8, kept alive by the views
) -> Any:
    """Return the tree, its tensors as views on `buffer`; a skeleton that names foreign classes is refused."""
    return _SkeletonReader(skeleton, buffer).load()


class _SkeletonWriter(pickle.Pickler):
    """Pickles everything but the tensors."""

    def __init__(self, stream: io.BytesIO, pack: TensorPack) -> None:
        super().__init__(stream, protocol=5)
        self._pack = pack

    def persistent_id(self, value: Any) -> tuple[int, str, tuple[int, ...]] | None:
        if not isinstance(value, Tensor):
            return None
        place = self._pack.place(value)
        return place.offset, str(place.dtype).removeprefix("torch."), place.shape


class _SkeletonReader(pickle.Unpickler):
    """Builds our own classes only: a skeleton comes from a process that reads strangers' files."""

    def __init__(self, skeleton: bytes, buffer: Tensor) -> None:
        super().__init__(io.BytesIO(skeleton))
        self._views = _Views(buffer)

    def persistent_load(self, pid: tuple[int, str, tuple[int, ...]]) -> Tensor:
        offset, dtype, shape = pid
        return self._views.at(_Place(offset, getattr(torch, dtype), shape))

    def find_class(self, module: str, name: str) -> Any:
        found: Any = super().find_class(module, name) if module.startswith(_OWN_ROOTS) else None
        if not isinstance(found, type) or found.__module__ != module:
            _refuse(module, name)
        return found


def _refuse(module: str, name: str) -> NoReturn:
    raise pickle.UnpicklingError(
        f"a pack names {module}.{name}; only classes of the engine may travel in one"
    )


class _Views:
    """Views on one buffer, a single call each: an adapter of experts has tens of thousands of tensors."""

    def __init__(
        self,
        buffer: Tensor,  # [num_bytes] uint8
    ) -> None:
        self._buffer = buffer
        self._typed: dict[torch.dtype, Tensor] = {}  # all of the buffer, as elements of each type

    def at(self, place: _Place) -> Tensor:
        """Return the tensor at a place; UnpicklingError for one that is not inside the buffer."""
        typed = self._typed.get(place.dtype)
        if typed is None:
            num_bytes = self._buffer.numel() // place.dtype.itemsize * place.dtype.itemsize
            typed = self._typed[place.dtype] = self._buffer[:num_bytes].view(place.dtype)
        first, remainder = divmod(place.offset, place.dtype.itemsize)
        num_elements, strides = _strides(place.shape)
        if first < 0 or remainder or first + num_elements > typed.numel() or min(place.shape, default=0) < 0:
            raise pickle.UnpicklingError(f"a pack of {self._buffer.numel()} bytes names a tensor at {place}")
        return typed.as_strided(place.shape, strides, typed.storage_offset() + first)


def _strides(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return how many elements a contiguous tensor has, and its strides."""
    strides, num_elements = [], 1
    for size in reversed(shape):
        strides.append(num_elements)
        num_elements *= size
    return num_elements, tuple(reversed(strides))


def _require_bytes(buffer: Tensor, num_bytes: int) -> None:
    if buffer.dtype is not torch.uint8 or buffer.dim() != 1 or buffer.numel() < num_bytes:
        raise ValueError(
            f"the buffer is {tuple(buffer.shape)} {buffer.dtype}; give at least {num_bytes} bytes in a row"
        )
