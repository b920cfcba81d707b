"""The intrinsics one by one, callable from Python."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Self

import numpy as np

from kernels.cpu.build import COMMON_FLAGS

SOURCE = Path(__file__).with_suffix(".cpp")


class Intrinsics:
    """A library of `intrinsics.cpp`, compiled with some level's flags."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    @classmethod
    def compiled(cls, folder: Path, flags: tuple[str, ...]) -> Self:
        """Compile into a folder."""
        path = folder / "intrinsics.so"
        subprocess.run(
            ["g++", *COMMON_FLAGS, *flags, "-fvisibility=default", "-shared", SOURCE, "-o", path], check=True
        )
        return cls(path)

    def vector(self, name: str, *arguments: np.ndarray) -> np.ndarray:
        """Return what an intrinsic makes of vectors of 64 bytes, as float32 [16]."""
        given = b"".join(argument.tobytes() for argument in arguments)
        assert len(given) == 64 * len(arguments), name
        out = np.zeros(16, np.float32)
        getattr(self._library, name)(ctypes.c_char_p(given), out.ctypes.data_as(ctypes.c_void_p))
        return out

    def load(self, name: str, address: int, mask: int) -> np.ndarray:
        """Return what a masked load reads, as 64 bytes."""
        out = np.zeros(64, np.uint8)
        getattr(self._library, name)(
            ctypes.c_void_p(address), ctypes.c_uint(mask), out.ctypes.data_as(ctypes.c_void_p)
        )
        return out

    def store(self, name: str, address: int, mask: int, vector: np.ndarray) -> None:
        """Store some lanes of 64 bytes."""
        assert vector.nbytes == 64
        given = ctypes.c_char_p(vector.tobytes())
        getattr(self._library, name)(ctypes.c_void_p(address), ctypes.c_uint(mask), given)
