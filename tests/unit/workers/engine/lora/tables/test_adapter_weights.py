"""The weights that kernels see equal what PEFT would merge into the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.unit.workers.engine.lora.adapter_writer import BASE, config_of, tensors_of, write_adapter
from workers.engine.core.errors import AdapterFileError, RequestError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.validate import CheckedAdapter, check_adapter
from workers.engine.lora.tables.adapter_weights import AdapterWeights, check_mixable, pack_adapter
from workers.engine.lora.tables.packed_slots import PackedKey

LAYOUT = BASE.layout


def _pack(adapter: CheckedAdapter, dtype: torch.dtype = torch.float32) -> AdapterWeights:
    return pack_adapter(adapter, shapes=BASE.shapes, layout=LAYOUT, dtype=dtype)


def _deltas(weights: AdapterWeights) -> dict[str, Tensor]:
    """Return B.A of every module, scaling included, as the packed tensors define it."""
    deltas = {}
    for key, packed in weights.modules.items():
        starts = {}
        column = 0
        for path in LAYOUT[key]:
            starts[column] = path
            column += BASE.shapes[path].out_features
        for columns, ranks, b_t, *_ in packed.slices:
            assert columns.end - columns.start == BASE.shapes[starts[columns.start]].out_features
            deltas[starts[columns.start]] = (
                b_t.T.double() @ packed.a[ranks.start : ranks.end].double()
            ).float()
    return deltas


def _peft_deltas(model: Any) -> dict[str, Tensor]:
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": ["k_proj", "up_proj", "down_proj"]},
        {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["o_proj", "gate_proj"]},
        {"r": 4, "target_modules": "all-linear"},
        {"r": 4, "target_modules": r".*layers\.1\.(self_attn\.[qk]_proj|mlp\.up_proj)"},
        {"r": 4, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {
            "r": 4,
            "target_modules": ["q_proj", "v_proj"],
            "exclude_modules": ["model.layers.0.self_attn.v_proj"],
        },
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"],
            "rank_pattern": {"q_proj": 20, r"layers\.1\.self_attn\.k_proj": 2},
            "alpha_pattern": {"down_proj": 3, "model.layers.0.self_attn.v_proj": 40},
        },
        {
            "r": 4,
            "use_rslora": True,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 9},
            "alpha_pattern": {"up_proj": 7},
        },
    ],
)
def test_behaviour_05_effective_weights_equal_what_peft_merges(
    options: dict[str, Any], tiny_llama: Any, tmp_path: Path
) -> None:
    model = get_peft_model(tiny_llama, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    model.save_pretrained(str(tmp_path))

    deltas = _deltas(_pack(check_adapter(tmp_path, base=BASE, max_rank=32)))

    expected = _peft_deltas(model)
    assert deltas.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(deltas[module], delta, atol=1e-6, rtol=1e-5)


def test_ranks_are_rounded_up_to_sixteen_and_no_further(tmp_path: Path) -> None:
    narrow = _pack(check_adapter(write_adapter(tmp_path / "a", rank=4), base=BASE, max_rank=64))
    wide = _pack(check_adapter(write_adapter(tmp_path / "b", rank=17), base=BASE, max_rank=64))

    assert narrow.modules[PackedKey(0, "qkv")].a.shape == (2 * 16, 32)
    assert wide.modules[PackedKey(0, "qkv")].a.shape == (2 * 32, 32)


def test_modules_the_adapter_lacks_are_absent_and_so_are_missing_parts(tmp_path: Path) -> None:
    weights = _pack(
        check_adapter(write_adapter(tmp_path, targets=("q_proj", "v_proj")), base=BASE, max_rank=64)
    )

    assert set(weights.modules) == {PackedKey(0, "qkv"), PackedKey(1, "qkv")}
    parts = weights.modules[PackedKey(0, "qkv")].slices
    assert [part.out for part in parts] == [(0, 32), (48, 64)]
    assert [part.rank for part in parts] == [(0, 16), (16, 32)]


def test_bfloat16_rounds_the_scaled_b_once(tmp_path: Path) -> None:
    checked = check_adapter(write_adapter(tmp_path, rank=3, targets=("o_proj",)), base=BASE, max_rank=64)
    module = "model.layers.1.self_attn.o_proj"

    packed = _pack(checked, torch.bfloat16).modules[PackedKey(1, "o")]

    expected = (checked.pairs[module].b * checked.config.scaling_of(module)).to(torch.bfloat16)
    assert torch.equal(packed.slices[0].b_t[:3].T, expected)
    assert packed.a.dtype is torch.bfloat16
    assert packed.slices[0].b_t[3:].count_nonzero() == 0


def test_weights_that_overflow_when_scaled_are_refused_with_module_and_scale(tmp_path: Path) -> None:
    tensors = tensors_of(rank=4, targets=("q_proj",))
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"].fill_(1e38)
    write_adapter(tmp_path, config=config_of(4, ("q_proj",), lora_alpha=16.0), tensors=tensors)
    checked = check_adapter(tmp_path, base=BASE, max_rank=8, name="sql")

    with pytest.raises(
        AdapterFileError, match=r"'sql' .*layers.1.self_attn.q_proj, scaled by 4, are too large"
    ):
        _pack(checked)


SQL, CODE = LoRARequest("sql", 1, "a"), LoRARequest("code", 2, "b", scale=0.5)


def test_an_adapter_that_must_be_alone_is_refused_in_a_mix_by_name() -> None:
    plain, odd = AdapterWeights("0", 4, {}), AdapterWeights("1", 4, {}, unmixable="it is odd")

    check_mixable([odd], [CODE])
    check_mixable([plain, plain], [SQL, CODE])
    with pytest.raises(RequestError, match="'code' cannot be in a LoRAMix: it is odd; ask for it alone"):
        check_mixable([plain, odd], [SQL, CODE])
