"""Where kernels read adapters: where the host keeps them, or in an arena on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kernels.lora.tables import AdapterRow, LoRASlice, PackedLoRA
from workers.engine.lora.residency.arena import Arena, Region, region_bytes
from workers.engine.lora.tables.adapter_weights import AdapterWeights, EmbeddingLoRA, VocabularyWeights

_ALIGN_BYTES = 64
_ADDRESS_COLUMNS = (0, 1, 3, 4)
"""Of an entry of the table: A, B, bias, DoRA terms; the other one is the rank."""


class Copy(Protocol):
    """Bytes on their way to the device."""

    @property
    def is_done(self) -> bool:
        """Whether all of them are there; raises what stopped them."""
        ...

    def wait(self) -> None:
        """Return when they are there; raises what stopped them."""
        ...


class Copier(Protocol):
    """Brings bytes to the device, in the background if the device has its own memory."""

    def copy(self, pieces: list[tuple[Tensor, Tensor]]) -> Copy:
        """Start copying from the first of each pair to the second, uint8 both and of one size."""
        ...

    def close(self) -> None:
        """Stop; what has been asked for may not arrive."""
        ...


class Placed(NamedTuple):
    """An adapter where kernels read it, as soon as `copy` is done."""

    row: AdapterRow  # with the addresses of that place
    vocabulary: VocabularyWeights  # the same
    copy: Copy


class AdapterMemory(Protocol):
    """The memory that kernels read adapters in."""

    def bring(self, revision: str, weights: AdapterWeights, row: AdapterRow) -> Placed | None:
        """Give a host revision a place there; None if there is no room for it now."""
        ...

    def drop(self, revision: str) -> None:
        """Give up a revision's place; nothing reads it, and nothing is being copied to it, any more."""
        ...

    @property
    def num_bytes(self) -> int | None:
        """What it holds at the most; None: all that the host cache does."""
        ...

    def size_of(self, weights: AdapterWeights) -> int:
        """Return the bytes that an adapter takes there."""
        ...

    def close(self) -> None:
        """Stop copying."""
        ...


class Done:
    """A copy that nobody has to wait for."""

    is_done = True

    def wait(self) -> None:
        """Return at once."""


class HostMemory:
    """The device reads the host's memory: adapters are used where they were loaded."""

    num_bytes = None

    def bring(self, revision: str, weights: AdapterWeights, row: AdapterRow) -> Placed:
        """Return the adapter as it is."""
        del revision
        return Placed(row, weights.vocabulary, Done())

    def drop(self, revision: str) -> None:
        """Do nothing: the host cache owns the memory."""

    def size_of(self, weights: AdapterWeights) -> int:
        """Return 0: an adapter takes nothing beyond its place in the host cache."""
        del weights
        return 0

    def close(self) -> None:
        """Do nothing."""


class DeviceMemory:
    """An arena on the device; every adapter lies in one region, as the loader laid it out.

    The loader's tensors are views of one piece of memory, so that an adapter is one copy, and its addresses
    on the device are those on the host, moved.
    """

    def __init__(self, bytes_: Tensor, copier: Copier) -> None:
        """`bytes_` is the arena, [num_bytes] uint8 on the device."""
        self._bytes = bytes_
        self._copier = copier
        self._arena = Arena(bytes_.numel())
        self._regions: dict[str, Region] = {}

    @property
    def num_free_bytes(self) -> int:
        """Bytes of the arena that are nobody's."""
        return self._arena.num_free_bytes

    def bring(self, revision: str, weights: AdapterWeights, row: AdapterRow) -> Placed | None:
        """Start copying an adapter to the first gap that it fits; None if there is none."""
        extents = _extents(weights)
        region = self._arena.allocate(_num_bytes(extents))
        if region is None:
            return None
        self._regions[revision] = region
        moves, pieces, start = [], [], region.start
        for extent in extents:
            target = self._bytes[start : start + extent.bytes_.numel()]
            pieces.append((extent.bytes_, target))
            moves.append(_Move(extent, target))
            start += _aligned(extent.bytes_.numel())
        return Placed(_moved_row(row, moves), _moved_vocabulary(weights, moves), self._copier.copy(pieces))

    def drop(self, revision: str) -> None:
        """Give up a revision's region."""
        self._arena.release(self._regions.pop(revision))

    @property
    def num_bytes(self) -> int:
        """The size of the arena."""
        return self._arena.num_bytes

    def size_of(self, weights: AdapterWeights) -> int:
        """Return the bytes of an adapter's region; looks at each of its tensors."""
        return region_bytes(_num_bytes(_extents(weights)))

    def close(self) -> None:
        """Stop copying."""
        self._copier.close()


class _Extent(NamedTuple):
    """The bytes of one piece of host memory that hold tensors of an adapter."""

    start: int  # address
    bytes_: Tensor  # [num_bytes] uint8

    def has(self, tensor: Tensor) -> bool:
        return self.start <= tensor.data_ptr() < self.start + self.bytes_.numel()


class _Move(NamedTuple):
    """Where an extent goes."""

    extent: _Extent
    target: Tensor  # [num_bytes] uint8 of the arena

    @property
    def distance(self) -> int:
        return self.target.data_ptr() - self.extent.start

    def tensor(self, host: Tensor) -> Tensor:
        """Return the same tensor in the arena."""
        first = host.data_ptr() - self.extent.start
        return self.target[first : first + host.nbytes].view(host.dtype).view(host.shape)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


def _num_bytes(extents: Iterable[_Extent]) -> int:
    return sum(_aligned(extent.bytes_.numel()) for extent in extents)


def _extents(weights: AdapterWeights) -> list[_Extent]:
    """Return the memory behind an adapter's tensors, from the first to the last byte used of each storage."""
    spans: dict[int, tuple[int, int, Tensor]] = {}
    for tensor in _tensors(weights):
        base, start = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
        first, end, _ = spans.get(base, (start, start, tensor))
        spans[base] = min(first, start), max(end, start + tensor.nbytes), tensor
    extents = []
    for base, (first, end, tensor) in spans.items():
        # Tensors begin at multiples of 64 bytes in the arena as they do on the host.
        first = base + (first - base) // _ALIGN_BYTES * _ALIGN_BYTES
        whole = torch.empty(0, dtype=torch.uint8).set_(
            tensor.untyped_storage(), first - base, (end - first,), (1,)
        )
        extents.append(_Extent(first, whole))
    return extents


def _tensors(weights: AdapterWeights) -> Iterable[Tensor]:
    for packed in weights.modules.values():
        yield packed.a
        for part in packed.slices:
            yield from part.tensors
    vocabulary = weights.vocabulary
    if vocabulary.head is not None:
        yield vocabulary.head.a
        for part in vocabulary.head.slices:
            yield from part.tensors
    lora = vocabulary.embedding
    others = () if lora is None else (lora.a_t, lora.b_t, lora.dora)
    for tensor in (*others, vocabulary.saved_embedding, vocabulary.saved_head):
        if tensor is not None:
            yield tensor


def _moved_row(row: AdapterRow, moves: list[_Move]) -> AdapterRow:
    addresses = row.addresses.clone()
    values = addresses.numpy()
    for column in _ADDRESS_COLUMNS:
        host = row.addresses[..., column].numpy()
        for (start, bytes_), move in ((move.extent, move) for move in moves):
            is_here = (host >= start) & (host < start + bytes_.numel())
            values[..., column] += is_here * move.distance
    if any(move.target.device.type == "cuda" for move in moves):
        addresses = addresses.pin_memory()  # so that giving a slot waits for nothing
    return replace(row, addresses=addresses)


def _moved_vocabulary(weights: AdapterWeights, moves: list[_Move]) -> VocabularyWeights:
    def moved(tensor: Tensor) -> Tensor:
        return next(move for move in moves if move.extent.has(tensor)).tensor(tensor)

    vocabulary = weights.vocabulary
    lora = vocabulary.embedding
    return VocabularyWeights(
        embedding=None
        if lora is None
        else EmbeddingLoRA(moved(lora.a_t), moved(lora.b_t), _if_any(moved, lora.dora)),
        head=None if vocabulary.head is None else _moved_packed(vocabulary.head, moved),
        saved_embedding=_if_any(moved, vocabulary.saved_embedding),
        saved_head=_if_any(moved, vocabulary.saved_head),
    )


def _moved_packed(packed: PackedLoRA, moved: Callable[[Tensor], Tensor]) -> PackedLoRA:
    slices: list[LoRASlice] = [
        part._replace(b_t=moved(part.b_t), bias=_if_any(moved, part.bias), dora=_if_any(moved, part.dora))
        for part in packed.slices
    ]
    return PackedLoRA(moved(packed.a), tuple(slices))


def _if_any(moved: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else moved(tensor)
