"""The tensors of an adapter's safetensors files, grouped by the module they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from workers.engine.errors import AdapterConfigError, AdapterFileError
from workers.engine.lora.adapter_files import CONFIG_NAME
from workers.engine.lora.peft_config import WHOLE_VOCABULARY

_PREFIX = "base_model.model."
_A_SUFFIX = ".lora_A.weight"
_B_SUFFIX = ".lora_B.weight"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class LoRAPair(NamedTuple):
    """One module's matrices as trained, without scaling."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]


def read_pairs(files: Mapping[str, bytes], label: str) -> dict[str, LoRAPair]:
    """Return A and B by module path; an AdapterError names the file or tensor that cannot be used."""
    tensors: dict[str, Tensor] = {}
    for name, content in files.items():
        if name != CONFIG_NAME:
            tensors.update(_read_tensors(name, content, label))
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, half = _split_key(key, label)
        _check_dtype(key, tensor, label)
        _check_finite(key, tensor, label)
        halves.setdefault(module, {})[half] = tensor
    return {module: _pair(module, found, label) for module, found in halves.items()}


def _read_tensors(name: str, content: bytes, label: str) -> dict[str, Tensor]:
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise AdapterFileError(
            f"{label}: {name} ({len(content)} bytes) is corrupt or truncated ({error}); copy or save it again"
        ) from error


def _split_key(key: str, label: str) -> tuple[str, str]:
    module = key.removeprefix(_PREFIX)
    if module != key:
        for suffix, half in ((_A_SUFFIX, "A"), (_B_SUFFIX, "B")):
            if module.endswith(suffix):
                return _servable(module.removesuffix(suffix), label), half
        _servable(module, label)
    raise AdapterConfigError(
        f"{label}: tensor {key!r} is not a LoRA weight ({_PREFIX}<module>{_A_SUFFIX} or {_B_SUFFIX}); "
        "save the adapter with PEFT's save_pretrained, without embeddings, biases or whole layers"
    )


def _servable(module: str, label: str) -> str:
    for part in WHOLE_VOCABULARY:
        if part in module.split("."):
            raise AdapterConfigError(
                f"{label}: it holds weights for {part}, which adapters cannot change; train it without {part}"
            )
    return module


def _check_dtype(key: str, tensor: Tensor, label: str) -> None:
    if tensor.dtype not in _DTYPES:
        raise AdapterFileError(
            f"{label}: tensor {key!r} is {tensor.dtype}; save the adapter as float32, float16 or bfloat16"
        )


def _check_finite(key: str, tensor: Tensor, label: str) -> None:
    if not tensor.isfinite().all():
        num_bad = int((~tensor.isfinite()).sum())
        raise AdapterFileError(
            f"{label}: tensor {key!r} holds {num_bad} values that are NaN or infinite; its training "
            "diverged or the file is damaged: save the adapter again, from an earlier checkpoint"
        )


def _pair(module: str, found: Mapping[str, Tensor], label: str) -> LoRAPair:
    if len(found) < 2:
        (present,) = found
        absent = "B" if present == "A" else "A"
        raise AdapterFileError(
            f"{label}: {module} has lora_{present} but no lora_{absent}; save the adapter again"
        )
    return LoRAPair(found["A"], found["B"])
