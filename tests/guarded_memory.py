"""Memory whose next byte ends the process, so that a load or store beyond it cannot go unseen."""

from __future__ import annotations

import ctypes
import mmap

_LIBC = ctypes.CDLL(None, use_errno=True)


class GuardedMemory:
    """Some bytes at the end of readable pages, before a page that nobody may touch."""

    def __init__(self, nbytes: int) -> None:
        num_pages = -(-nbytes // mmap.PAGESIZE)
        pages = mmap.mmap(-1, (num_pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        guard = start + num_pages * mmap.PAGESIZE
        if _LIBC.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
        self.address = guard - nbytes
        first = self.address - start
        self.buffer = memoryview(pages)[first : first + nbytes]  # keeps the pages mapped
