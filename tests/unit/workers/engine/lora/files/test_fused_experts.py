"""Adapters that PEFT trained on fused experts are cut into what it computes for each, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.lora.tables import RANK_MULTIPLE, Slice
from tests.unit.workers.engine.lora.adapter_writer import config_of, write_adapter
from workers.engine.core.errors import AdapterConfigError, AdapterError, AdapterFileError, AdapterShapeError
from workers.engine.lora.files.base import BaseDescription, ModuleShape, PackedKey
from workers.engine.lora.files.validate import CheckedAdapter, check_adapter
from workers.engine.lora.tables.adapter_weights import pack_adapter

HIDDEN, WIDTH, NUM_EXPERTS, RANK = 6, 4, 3, 2
_ROUTER = "model.layers.0.block_sparse_moe.gate"
_EXPERTS = "base_model.model.model.layers.0.mlp.experts"
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def _expert(expert: int, module: str) -> str:
    return f"model.layers.0.block_sparse_moe.experts.{expert}.{module}"


def _base() -> BaseDescription:
    layout: dict[PackedKey, tuple[str, ...]] = {PackedKey(0, "router"): (_ROUTER,)}
    shapes = {_ROUTER: ModuleShape(HIDDEN, NUM_EXPERTS)}
    for expert in range(NUM_EXPERTS):
        gate, down, up = (_expert(expert, module) for module in ("w1", "w2", "w3"))
        layout |= {PackedKey(0, "gate_up", expert): (gate, up), PackedKey(0, "down", expert): (down,)}
        shapes |= {gate: ModuleShape(HIDDEN, WIDTH), up: ModuleShape(HIDDEN, WIDTH)}
        shapes[down] = ModuleShape(WIDTH, HIDDEN)
    return BaseDescription("tiny-base", 1, shapes, layout)


def _config(parameters: list[str], **changes: Any) -> dict[str, Any]:
    return config_of(RANK, (), target_parameters=parameters, **changes)


def _pair(
    place: str, out_features: int, in_features: int, ranks: int = RANK * NUM_EXPERTS
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(out_features)
    return {
        f"{place}.lora_A.weight": torch.randn(ranks, in_features, generator=generator),
        f"{place}.lora_B.weight": torch.randn(out_features, ranks, generator=generator),
    }


GATE_UP = _pair(f"{_EXPERTS}.base_layer", 2 * WIDTH, HIDDEN)
DOWN = _pair(_EXPERTS, HIDDEN, WIDTH)


def _check(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> CheckedAdapter:
    return check_adapter(
        write_adapter(folder, config=config, tensors=tensors), base=_base(), max_rank=8, name="sql"
    )


def _refused(
    folder: Path, error: type[AdapterError], match: str, config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(error, match=match) as raised:
        _check(folder, config, tensors)
    assert str(raised.value).startswith(f"adapter 'sql' ({folder}): ")


def _deltas(tensors: dict[str, Tensor]) -> Tensor:
    """Return the change of every expert's weight, unscaled, in the words of PEFT's ParamWrapper."""
    a, b = tensors.values()
    a, b = a.reshape(NUM_EXPERTS, -1, a.shape[1]), b.reshape(b.shape[0], -1, NUM_EXPERTS)
    return torch.einsum("o r e, e r i -> e o i", b, a)


def test_every_expert_gets_its_share_of_both_parameters(tmp_path: Path) -> None:
    adapter = _check(tmp_path, _config(BOTH), GATE_UP | DOWN)

    def delta(expert: int, module: str) -> Tensor:
        pair = adapter.pairs[_expert(expert, module)]
        return pair.b @ pair.a

    for expert in range(NUM_EXPERTS):
        gate_up = torch.cat([delta(expert, "w1"), delta(expert, "w3")])
        torch.testing.assert_close(gate_up, _deltas(GATE_UP)[expert])
        torch.testing.assert_close(delta(expert, "w2"), _deltas(DOWN)[expert])
    assert adapter.description.targets == ("w1", "w2", "w3")


def test_gate_and_up_share_their_matrix_in_memory(tmp_path: Path) -> None:
    adapter, base = _check(tmp_path, _config(BOTH), GATE_UP | DOWN), _base()

    weights = pack_adapter(adapter, shapes=base.shapes, layout=base.layout, dtype=torch.float32)

    packed = weights.modules[PackedKey(0, "gate_up", 1)]
    assert packed.a.shape == (RANK_MULTIPLE, HIDDEN)
    assert [part.rank for part in packed.slices] == [Slice(0, RANK_MULTIPLE)] * 2
    assert [part.out for part in packed.slices] == [Slice(0, WIDTH), Slice(WIDTH, 2 * WIDTH)]


@pytest.mark.parametrize(
    ("parameters", "tensors", "targets"),
    [
        (["experts.down_proj"], DOWN, ("w2",)),
        (["gate_up_proj"], _pair(_EXPERTS, 2 * WIDTH, HIDDEN), ("w1", "w3")),
        (
            ["gate.weight"],
            _pair(f"{_EXPERTS.removesuffix('experts')}gate", NUM_EXPERTS, HIDDEN, RANK),
            ("gate",),
        ),
        (["model.layers.0.mlp.experts.down_proj"], DOWN, ("w2",)),
    ],
)
def test_a_single_parameter_is_not_nested(
    parameters: list[str], tensors: dict[str, Tensor], targets: tuple[str, ...], tmp_path: Path
) -> None:
    adapter = _check(tmp_path, _config(parameters), tensors)

    assert adapter.description.targets == targets


def test_patterns_speak_of_the_parameters(tmp_path: Path) -> None:
    # The first of these patterns is what PEFT writes when it converts an adapter of single experts.
    config = _config(BOTH, rank_pattern={r".*\.gate_up_proj": 4}, alpha_pattern={"experts.down_proj": 7})
    tensors = DOWN | _pair(f"{_EXPERTS}.base_layer", 2 * WIDTH, HIDDEN, 4 * NUM_EXPERTS)

    adapter = _check(tmp_path, config, tensors)

    assert adapter.description.rank == 4
    assert adapter.scaling_of(_expert(1, "w3")) == 2 * RANK / 4
    assert adapter.scaling_of(_expert(2, "w2")) == 7 / RANK


@pytest.mark.parametrize(
    "parameter",
    ["weight", "proj", "experts", "norm.weight", "q_proj.weight", "up_proj", "0.gate_up_proj", "x.down_proj"],
)
def test_other_parameters_than_experts_and_routers_are_refused_by_name(
    parameter: str, tmp_path: Path
) -> None:
    parameters = [*BOTH, parameter]

    _refused(
        tmp_path,
        AdapterConfigError,
        rf"target_parameters=\[.*\] is not supported: '{parameter}' is neither .*; train ",
        _config(parameters),
        GATE_UP | DOWN,
    )


@pytest.mark.parametrize(
    ("tensors", "error", "match"),
    [
        (
            GATE_UP | _pair(_EXPERTS, HIDDEN, WIDTH, 7),
            AdapterShapeError,
            r"3 experts of rank 2 need \(6, in\)",
        ),
        (GATE_UP | _pair(_EXPERTS, WIDTH, HIDDEN), AdapterShapeError, r"0.w2 has lora_A \(2, 6\)"),
        (
            DOWN | _pair(f"{_EXPERTS}.base_layer", 7, HIDDEN),
            AdapterShapeError,
            r"lora_B \(7, 6\), but 3 experts",
        ),
        (GATE_UP | _pair(_EXPERTS, HIDDEN, 0), AdapterShapeError, r"0.w2 has lora_A \(2, 0\)"),
        (DOWN | _pair(f"{_EXPERTS}.base_layer", 0, HIDDEN), AdapterShapeError, r"lora_B \(0, 2\)"),
        (DOWN, AdapterFileError, r"no weights for .*experts.0.w1' \(6 such modules\)"),
        (
            GATE_UP | DOWN | {f"{_EXPERTS}.lora_magnitude_vector": torch.ones(6)},
            AdapterFileError,
            "magnitudes",
        ),
    ],
)
def test_matrices_that_do_not_fit_the_experts_are_refused(
    tensors: dict[str, Tensor], error: type[AdapterError], match: str, tmp_path: Path
) -> None:
    _refused(tmp_path, error, match, _config(BOTH), tensors)


def test_dora_which_peft_does_not_know_for_parameters_is_refused(tmp_path: Path) -> None:
    _refused(
        tmp_path,
        AdapterFileError,
        "has no lora_magnitude_vector",
        _config(BOTH, use_dora=True),
        GATE_UP | DOWN,
    )
