"""The tensors of an adapter's safetensors files, grouped by the module they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from workers.engine.core.errors import AdapterConfigError, AdapterFileError
from workers.engine.lora.files.foreign_folders import CONFIG_NAME
from workers.engine.lora.files.peft_config import VOCABULARY_MODULES

_PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
_COPY_SUFFIXES = (".base_layer.weight", ".original_module.weight")
_DOUBLE_SUFFIX = ".modules_to_save.weight"
_WEIGHT_SUFFIX = ".weight"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class LoRAPair(NamedTuple):
    """One module's matrices as trained, without scaling; an embedding maps one-hot tokens."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]
    bias: Tensor | None = None  # [out_features], of lora_B
    magnitude: Tensor | None = None  # [out_features], DoRA's


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """What an adapter's files hold, by module path."""

    pairs: dict[str, LoRAPair] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)  # whole weights of embedding and head
    base_copies: dict[str, Tensor] = field(default_factory=dict)  # of the weights below LoRA or a whole copy
    doubles: dict[str, Tensor] = field(default_factory=dict)  # of `saved`, which save_embedding_layers writes


def read_tensors(files: Mapping[str, bytes], label: str) -> AdapterTensors:
    """Return an adapter's tensors; an AdapterError names the file or tensor that cannot be used."""
    parts: dict[str, dict[str, Tensor]] = {}
    found = AdapterTensors()
    for name, content in files.items():
        if name == CONFIG_NAME:
            continue
        for key, tensor in _read_file(name, content, label).items():
            _check_dtype(key, tensor, label)
            _check_finite(key, tensor, label)
            _sort_in(key, tensor, parts, found, label)
    found.pairs.update({module: _pair(module, held, label) for module, held in parts.items()})
    return found


def _read_file(name: str, content: bytes, label: str) -> dict[str, Tensor]:
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise AdapterFileError(
            f"{label}: {name} ({len(content)} bytes) is corrupt or truncated ({error}); copy or save it again"
        ) from error


def _sort_in(
    key: str, tensor: Tensor, parts: dict[str, dict[str, Tensor]], found: AdapterTensors, label: str
) -> None:
    path = key.removeprefix(_PREFIX)
    for suffix, part in _PARTS.items():
        if path != key and path.endswith(suffix):
            parts.setdefault(path.removesuffix(suffix), {})[part] = tensor
            return
    places = [(suffix, found.base_copies) for suffix in _COPY_SUFFIXES]
    for suffix, place in (*places, (_DOUBLE_SUFFIX, found.doubles), (_WEIGHT_SUFFIX, found.saved)):
        module = path.removesuffix(suffix)
        if path != key and path != module and module.rpartition(".")[2] in VOCABULARY_MODULES:
            place[module] = tensor
            return
    raise AdapterConfigError(
        f"{label}: tensor {key!r} is neither a LoRA weight ({_PREFIX}<module>.lora_A.weight and so on) nor a "
        f"whole {' or '.join(VOCABULARY_MODULES)}; save the adapter with PEFT's save_pretrained, without "
        "other layers and biases of the base"
    )


def _check_dtype(key: str, tensor: Tensor, label: str) -> None:
    if tensor.dtype not in _DTYPES:
        raise AdapterFileError(
            f"{label}: tensor {key!r} is {tensor.dtype}; save the adapter as float32, float16 or bfloat16"
        )


def _check_finite(key: str, tensor: Tensor, label: str) -> None:
    if not tensor.isfinite().all():
        num_bad = int((~tensor.isfinite()).sum())
        raise AdapterFileError(
            f"{label}: tensor {key!r} holds NaN or infinite numbers ({num_bad} of {tensor.numel()}); its "
            "training diverged or the file is damaged: save the adapter again, from an earlier checkpoint"
        )


def _pair(module: str, found: Mapping[str, Tensor], label: str) -> LoRAPair:
    for absent, present in (("A", "B"), ("B", "A")):
        if absent not in found:
            held = f"lora_{present}" if present in found else f"a LoRA {next(iter(found))}"
            raise AdapterFileError(
                f"{label}: {module} has {held} but no lora_{absent}; save the adapter again"
            )
    return LoRAPair(found["A"], found["B"], found.get("bias"), found.get("magnitude"))
