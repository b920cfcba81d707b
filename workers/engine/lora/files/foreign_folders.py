"""Names what a folder holds in place of a PEFT adapter, and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CONFIG_NAME = "adapter_config.json"
_MAX_SHOWN = 8
_MAX_LOOKED_INTO = 1000

# (what marks it, what it is, what to do), the first that fits is said
_KINDS = (
    ("adapters.safetensors", "an adapter of mlx-lm", "convert it to PEFT's keys and adapter_config.json"),
    ("adapters.npz", "an adapter of mlx-lm", "convert it to PEFT's keys and adapter_config.json"),
    (
        "adapter_0.pt",
        "an adapter of torchtune, a pickle, which is never read",
        "convert it to PEFT's keys, in safetensors",
    ),
    ("pytorch_lora_weights.safetensors", "an adapter of diffusers", "language models' adapters are served"),
    ("lit_model.pth.lora", "an adapter of LitGPT", "convert it to PEFT's keys and adapter_config.json"),
    ("model.safetensors", "the weights of a whole model", "serve it as a base, or save the adapter alone"),
    ("model.safetensors.index.json", "a whole model", "serve it as a base, or save the adapter alone"),
    ("pytorch_model.bin", "the weights of a whole model", "save the adapter alone, with PEFT"),
)
_ENDINGS = (
    (".gguf", "an adapter or a model of llama.cpp", "give the PEFT folder that it was made from"),
    (".nemo", "an archive of NeMo", "export it to PEFT's files"),
    (".incomplete", "a download that has not ended", "download it again"),
    (".safetensors.index.json", "an index without its weights", "copy the weights as well"),
    (".pt", "a pickle, which is never read", "save it with PEFT's save_pretrained"),
    (".bin", "a pickle, which is never read", "save it with PEFT's save_pretrained"),
)


def describe_contents(path: Path, names: Iterable[str]) -> str:
    """Say what there is, what that may be, and what to do, for a message's end after a semicolon."""
    found = sorted(names)
    if folders := _folders_with_adapters(path, found):
        shown = ", ".join(map(repr, folders[:_MAX_SHOWN]))
        return f"its sub-folders with one are {shown}; give one of those, such as {str(path / folders[0])!r}"
    for name, what, remedy in _marks(found):
        return f"it holds {name!r}, {what}; {remedy}"
    if not found:
        return "it is empty; give a folder that PEFT's save_pretrained wrote"
    more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    listed = ", ".join(f"{name!r:.100}" for name in found[:_MAX_SHOWN])
    return f"it holds {listed}{more}; give a folder that PEFT's save_pretrained wrote"


def _folders_with_adapters(path: Path, names: list[str]) -> list[str]:
    return [name for name in names[:_MAX_LOOKED_INTO] if (path / name / CONFIG_NAME).is_file()]


def _marks(names: list[str]) -> Iterable[tuple[str, str, str]]:
    for mark, what, remedy in _KINDS:
        if mark in names:
            yield mark, what, remedy
    for ending, what, remedy in _ENDINGS:
        for name in names:
            if name.endswith(ending):
                yield name, what, remedy
