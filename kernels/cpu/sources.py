"""Which sources make the library, and where a build of exactly these sources for exactly this torch lies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
# Each kernel is compiled once per level, with that level's instructions and no others.
LEVEL_FLAGS = {
    "avx512": (
        "-DLORAYARD_AVX512",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx512bf16",
        "-mfma",
    ),
    "avx2": ("-mavx2", "-mfma"),
}
KERNELS = (
    "lora_add",
    "paged_attention",
    "add_rms_norm",
    "swiglu",
    "geglu",
    "clamped_swiglu",
    "linear",
    "quantized_linear",
)
BINDINGS = "bindings"


class Recipe(NamedTuple):
    """What one library is made of besides the sources here, and where it lies."""

    folder: Path
    name: str  # torch's namespace of the library's operators
    level_flags: dict[str, tuple[str, ...]]
    bindings_flags: tuple[str, ...] = ()
    other_sources: tuple[Path, ...] = ()  # what else it changes with


# The bindings are torch's headers and compute nothing: to optimise them took 6 of their 20 CPU seconds.
OURS = Recipe(FOLDER, "lorayard", LEVEL_FLAGS, bindings_flags=("-O1",))
"""The one library that the engine loads; tests make another."""


def library_path(torch_version: str, recipe: Recipe = OURS) -> Path:
    """Return a library's place; its name changes with sources, flags and torch, whose C++ ABI it uses."""
    digest = hashlib.sha256(repr((recipe.level_flags, recipe.bindings_flags)).encode())
    sources = sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])
    for source in (*sources, *recipe.other_sources):
        digest.update(source.read_bytes())
    return recipe.folder / f"{recipe.name}_cpu-{torch_version}-{digest.hexdigest()[:12]}.so"
