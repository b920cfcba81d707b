from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.workers.engine.lora.adapter_writer import BASE, write_adapter
from workers.engine.core.errors import AdapterConfigError, AdapterMatchesNothing, ConfigError
from workers.engine.lora.files.module_filter import allows, check_names
from workers.engine.lora.files.validate import validate_adapter

Q = "model.layers.1.self_attn.q_proj"
QKV = "model.layers.1.self_attn.qkv_proj"


@pytest.mark.parametrize(
    ("names", "module", "allowed"),
    [
        (None, Q, True),
        (("q_proj",), Q, True),
        (("self_attn.q_proj",), Q, True),
        ((Q,), Q, True),
        (("qkv_proj",), Q, True),
        (("q_proj",), QKV, True),
        (("gate_up_proj", "v_proj"), Q, False),
        (("proj",), Q, False),
        (("model.layers.0.self_attn.q_proj",), Q, False),
        (("lm_head",), "lm_head", True),
    ],
)
def test_behaviour_13_names_match_paths_last_parts_and_packed_modules_both_ways(
    names: tuple[str, ...] | None, module: str, allowed: bool
) -> None:
    assert allows(names, module) is allowed


def test_behaviour_13_an_adapter_of_other_modules_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, targets=("q_proj", "v_proj"))

    assert validate_adapter(tmp_path, base=BASE, max_rank=8, target_modules=("qkv_proj",)).num_modules == 4
    with pytest.raises(AdapterMatchesNothing, match=r"4 of its 4 modules\), which lora_target_modules="):
        validate_adapter(tmp_path, base=BASE, max_rank=8, target_modules=("gate_up_proj",))


def test_behaviour_13_an_adapter_of_more_modules_is_refused_not_cut(tmp_path: Path) -> None:
    write_adapter(tmp_path, targets=("q_proj", "v_proj"))

    with pytest.raises(AdapterConfigError, match=r"changes 'model.layers.0.self_attn.v_proj' \(2 of its 4"):
        validate_adapter(tmp_path, base=BASE, max_rank=8, target_modules=("q_proj",))


def test_a_name_that_the_base_lacks_is_refused_at_the_start() -> None:
    check_names(("q_proj", "gate_up_proj"), BASE.shapes)

    with pytest.raises(ConfigError, match="names 'c_attn', which this base lacks; it has down_proj, "):
        check_names(("q_proj", "c_attn"), BASE.shapes)
