"""Memory whose next byte ends the process, so that a load or store beyond it cannot go unseen."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)


class GuardedMemory:
    """Some bytes at the end of readable pages, before a page that nobody may touch."""

    def __init__(self, nbytes: int) -> None:
        num_pages = -(-nbytes // mmap.PAGESIZE)
        self._pages = mmap.mmap(-1, (num_pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        guard = start + num_pages * mmap.PAGESIZE
        if _LIBC.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
        self.address = guard - nbytes
        self._offset = self.address - start

    def holding(self, values: Tensor) -> Tensor:
        """Return the values as a tensor in this memory, which lives as long as the tensor does."""
        if values.numel() == 0:  # no buffer is that short for torch
            return values.clone()
        flat = torch.frombuffer(self._pages, dtype=values.dtype, count=values.numel(), offset=self._offset)
        return flat.view(values.shape).copy_(values)


def guarded(values: Tensor) -> Tensor:
    """Return a copy at the end of memory of its own."""
    return GuardedMemory(values.nbytes).holding(values)
