"""Makes avx512_bf16 kernels that need AVX2 alone: `python -m tests.emulated.library` compiles them.

The sources are those of `kernels/cpu`, compiled against `avx512/immintrin.h` beside this file. Tests of
kernels run them where the processor lacks the instructions; with LORAYARD_TESTS_EMULATE=avx512_bf16
everything else in that run of pytest resolves them too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from kernels.cpu import build, library
from kernels.cpu.sources import Recipe, library_path

LEVEL: library.Level = "avx512_bf16"
VARIABLE = "LORAYARD_TESTS_EMULATE"
FOLDER = Path(__file__).parent
HEADER = FOLDER / "avx512" / "immintrin.h"
# CPU seconds on Zen 3 to compile the kernels with -Og, -O1, -O2 and -O3: 9, 16, 24, 34; to run their tests
# with -Og and -O1: 10 and 6 (2026-11-26).
FLAGS = ("-DLORAYARD_AVX512", "-mavx2", "-mfma", f"-I{HEADER.parent}", "-Og")
RECIPE = Recipe(
    FOLDER,
    "lorayard_emulated",
    {"avx512": FLAGS},
    bindings_flags=("-DLORAYARD_EMULATED_AVX512", "-Og"),
    other_sources=(HEADER,),
)


@contextmanager
def at_level(level: library.Level) -> Iterator[library.Level]:
    """Have a level for a test, emulated if need be; the test is skipped if it is not to be had even so."""
    if level in library.available_levels():
        yield level
        return
    if level != LEVEL or library.LEVEL_VARIABLE in os.environ:
        pytest.skip(f"this processor or this build has no {level} kernels")
    if problem := _problem():
        pytest.skip(f"{level} kernels can only be emulated here, and {problem}")
    with library.use_library(RECIPE, LEVEL):
        yield level


@contextmanager
def whole_run() -> Iterator[None]:
    """Compile what has to be emulated, and resolve kernels at that level for a while."""
    if not _is_native():
        build.compiled(RECIPE)
    with at_level(LEVEL), library.use_level(LEVEL):
        yield


@cache
def _problem() -> str | None:
    """Load the library; say why it cannot be."""
    path = library_path(torch.__version__, RECIPE)
    if not path.exists():
        return f"nobody has run `python -m {__spec__.name}`"
    return None if library.load(path, RECIPE) == LEVEL else "that needs AVX2"


def _is_native() -> bool:
    return LEVEL in library.available_levels()


def main() -> None:
    """Compile the library where it is of use."""
    if _is_native():
        print(f"this processor has {LEVEL}: there is nothing to emulate")
    elif problem := build.obstacle():
        print(f"{LEVEL} kernels not emulated: {problem}")
    else:
        print(build.compiled(RECIPE))


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
