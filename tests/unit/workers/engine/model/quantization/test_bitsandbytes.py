"""Files of bitsandbytes that do not fit their config are refused by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.quantization.bitsandbytes import BitsAndBytesCheckpoint

SETTINGS = BitsAndBytesCheckpoint(quant_method="bitsandbytes", load_in_4bit=True)
STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 16]}


def as_bytes(state: object) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """An NF4 weight of 8 times 16."""
    return {
        "m.weight": torch.zeros(64, 1, dtype=torch.uint8),
        "m.weight.absmax": torch.ones(2),
        "m.weight.quant_map": torch.linspace(-1, 1, 16),
        "m.weight.quant_state.bitsandbytes__nf4": as_bytes(STATE),
    }


def read(folder: Path, tensors: dict[str, Tensor]) -> Tensor | None:
    save_file(tensors, folder / "model.safetensors")
    with CheckpointReader(folder, torch.float32) as reader:
        weight = SETTINGS.read_weight(reader, "m", 8, 16)
        return None if weight is None else weight.dense()


def test_codes_may_be_stored_as_the_bits_of_another_type(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["m.weight"] = torch.arange(64, dtype=torch.uint8).view(64, 1)
    expected = read(tmp_path, tensors)

    tensors["m.weight"] = tensors["m.weight"].flatten().view(torch.bfloat16).view(-1, 1)

    assert expected is not None
    assert torch.equal(read(tmp_path, tensors), expected)  # type: ignore[arg-type]  # it is a tensor


def test_a_module_without_statistics_is_plain(tmp_path: Path) -> None:
    assert read(tmp_path, {"m.weight": torch.zeros(8, 16)}) is None


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("m.weight.quant_state.bitsandbytes__nf4", None, "has no quant_state of NF4 or FP4"),
        ("m.weight.quant_state.bitsandbytes__nf4", as_bytes("rubbish"), "cannot be read"),
        ("m.weight.quant_state.bitsandbytes__nf4", as_bytes(STATE | {"blocksize": 0}), "cannot be read"),
        (
            "m.weight.quant_state.bitsandbytes__nf4",
            as_bytes(STATE | {"shape": [16, 8]}),
            r"has shape \(16, 8\), config.json implies \(8, 16\)",
        ),
        ("m.weight", torch.zeros(63, 1, dtype=torch.uint8), "holds 63 bytes for 128 weights"),
        ("m.weight", torch.zeros(64, 1, dtype=torch.int16), "has dtype torch.int16; give uint8"),
        ("m.weight.absmax", torch.ones(3), r"has shape \(3,\)"),
        ("m.weight.quant_map", None, "quant_map' is missing"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, tensors: dict[str, Tensor], name: str, tensor: Tensor | None, message: str
) -> None:
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor

    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, tensors)


def test_int8_in_a_layout_of_some_gpus_is_refused(tmp_path: Path) -> None:
    int8 = {
        "m.weight": torch.zeros(8, 16, dtype=torch.int8),
        "m.SCB": torch.ones(8),
        "m.weight_format": torch.tensor(2, dtype=torch.uint8),
    }

    with pytest.raises(CheckpointError, match=r"weight_format' is not 0 \(rows\), the only layout served"):
        read(tmp_path, int8)
