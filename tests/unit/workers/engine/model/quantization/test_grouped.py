"""AWQ's and GPTQ's words, code by code, and files that do not fit their config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.quantized_copy import write_awq, write_gptq
from tests.unit.workers.engine.quantized_checkpoints import change_settings, save_plain
from workers.engine.core.errors import CheckpointError
from workers.engine.model.checkpoint import CheckpointReader
from workers.engine.model.config import load_model_config
from workers.engine.model.quantization.awq import AwqCheckpoint
from workers.engine.model.quantization.gptq import GptqCheckpoint
from workers.engine.model.weights import load_weights

# Written out by hand: 0x76543210 as a signed word, and the outputs that AWQ's order gives its codes to.
WORD = 0x76543210
AWQ_OUTPUTS = [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "base"
    save_plain(folder)
    return folder


def reader_of(folder: Path, tensors: dict[str, Tensor]) -> CheckpointReader:
    save_file(tensors, folder / "model.safetensors")
    return CheckpointReader(folder, torch.float32)


def words(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


def test_an_awq_word_holds_eight_outputs_in_awqs_order(tmp_path: Path) -> None:
    tensors = {
        "m.qweight": words([WORD], [WORD]),
        "m.qzeros": words([0x11111111]),
        "m.scales": torch.full((1, 8), 0.5, dtype=torch.float16),
    }
    settings = AwqCheckpoint(quant_method="awq", bits=4, group_size=2)
    with reader_of(tmp_path, tensors) as reader:
        weight = settings.read_weight(reader, "m", 8, 2)
        reader.require_all_read()

    assert weight is not None
    column = (torch.tensor(AWQ_OUTPUTS) - 1.0) * 0.5
    assert torch.equal(weight.dense(), torch.stack([column, column], dim=1))


@pytest.mark.parametrize(("layout", "zero"), [("gptq", 0), ("gptq_v2", 15)])
def test_a_gptq_word_holds_eight_inputs_and_the_first_format_stores_zeros_less_one(
    tmp_path: Path, layout: str, zero: int
) -> None:
    tensors = {
        "m.qweight": words([WORD] * 8),
        "m.qzeros": words([-1]),  # every 4 bits are 15: the first format's 0
        "m.scales": torch.full((1, 8), 0.25, dtype=torch.float16),
        "m.g_idx": torch.zeros(8, dtype=torch.int32),
    }
    settings = GptqCheckpoint.model_validate(
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": layout}
    )
    with reader_of(tmp_path, tensors) as reader:
        weight = settings.read_weight(reader, "m", 8, 8)
        reader.require_all_read()

    assert weight is not None
    assert torch.equal(weight.dense(), ((torch.arange(8) - zero) * 0.25).expand(8, 8))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder: Path) -> None:
    load_weights(folder, load_model_config(folder), torch.float32)


def test_autogptqs_biases_of_zero_are_nothing_and_others_are_refused(base: Path, tmp_path: Path) -> None:
    folder, name = tmp_path / "gptq", "model.layers.1.self_attn.q_proj.bias"
    write_gptq(base, folder)
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(64).half()}))
    load(folder)

    change_tensors(folder, lambda tensors: tensors[name].fill_(0.5))

    with pytest.raises(CheckpointError, match=f"{name}' is not zero, and this architecture has no such bias"):
        load(folder)


def test_groups_of_unequal_size_are_refused(base: Path, tmp_path: Path) -> None:
    write_gptq(base, tmp_path / "gptq")
    name = "model.layers.0.mlp.down_proj.g_idx"
    change_tensors(tmp_path / "gptq", lambda tensors: tensors[name].fill_(0))

    with pytest.raises(CheckpointError, match=f"{name}' does not put 32 inputs into each of 3 groups"):
        load(tmp_path / "gptq")


@pytest.mark.parametrize("write", [write_awq, write_gptq])
def test_a_group_size_that_does_not_divide_is_named(
    base: Path, tmp_path: Path, write: Callable[..., object]
) -> None:
    write(base, tmp_path / "copy")
    change_settings(tmp_path / "copy", group_size=48)

    with pytest.raises(CheckpointError, match="q_proj: group_size 48 does not divide its 64 inputs"):
        load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, path: tensors.pop(f"{path}.scales"), "scales' is missing"),
        (
            lambda tensors, path: tensors.update({f"{path}.extra": torch.ones(1)}),
            "tensors without a place in this model: 1",
        ),
        (
            lambda tensors, path: tensors.update({f"{path}.qzeros": torch.zeros(2, 8)}),
            "qzeros' has dtype torch.float32; give int32",
        ),
        (
            lambda tensors, path: tensors.update({f"{path}.scales": torch.ones(4, 64)}),
            r"scales' has shape \(4, 64\), config.json implies \(2, 64\)",
        ),
    ],
)
def test_files_that_do_not_fit_their_config_are_refused_by_tensor(
    base: Path, tmp_path: Path, change: Callable[[dict[str, Tensor], str], object], message: str
) -> None:
    write_awq(base, tmp_path / "awq")
    change_tensors(tmp_path / "awq", lambda tensors: change(tensors, "model.layers.0.self_attn.q_proj"))

    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "awq")


def test_a_module_left_plain_is_served_plain(base: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "awq", "model.layers.0.self_attn.v_proj"
    dequantized = write_awq(base, folder)
    plain = load_file(base / "model.safetensors")[f"{path}.weight"]

    def leave_plain(tensors: dict[str, Tensor]) -> None:
        for part in ("qweight", "qzeros", "scales"):
            del tensors[f"{path}.{part}"]
        tensors[f"{path}.weight"] = plain

    change_tensors(folder, leave_plain)

    linears = load_weights(folder, load_model_config(folder), torch.float32).layers[0].linears
    q, k = (dequantized[f"model.layers.0.self_attn.{name}.weight"] for name in ("q_proj", "k_proj"))
    assert torch.equal(linears["qkv"].dense(), torch.cat([q, k, plain]))
