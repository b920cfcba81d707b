"""Which sources make the library, and where a build of exactly these sources for exactly this torch lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

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
KERNELS = ("lora_add", "paged_attention", "add_rms_norm", "swiglu", "geglu", "logits", "quantized_linear")
BINDINGS = "bindings"


def library_path(torch_version: str) -> Path:
    """Return the library's place; its name changes with the sources and with torch, whose C++ ABI it uses."""
    digest = hashlib.sha256()
    for source in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"), Path(__file__)]):
        digest.update(source.read_bytes())
    return FOLDER / f"lorayard_cpu-{torch_version}-{digest.hexdigest()[:12]}.so"
