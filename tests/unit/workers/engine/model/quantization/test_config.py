"""What a quantization_config may say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers.engine.core.errors import CheckpointError, ConfigError
from workers.engine.model.quantization import in_flight, quantization_of

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def parse(settings: dict[str, Any] | None) -> Any:
    return quantization_of({"quantization_config": settings}, Path("config.json"))


def test_a_plain_checkpoint_has_none() -> None:
    assert parse(None) is None
    assert quantization_of({}, Path("config.json")) is None


@pytest.mark.parametrize(
    "settings",
    [
        AWQ | {"version": "GEMM", "modules_to_not_convert": ["lm_head"], "backend": "autoawq"},
        AWQ | {"format": "gemm"},
        GPTQ | {"desc_act": True, "sym": True, "damp_percent": 0.1, "true_sequential": True},
        GPTQ | {"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2", "dynamic": None},
        GPTQ | {"dynamic": {"-:.*lm_head.*": {}, r"-:.*\.1\..*": {"bits": 8}, "+:.*": {}}},
        GPTQ | {"format": "gptq", "lm_head": False, "dynamic": {}, "meta": {"quantizer": ["gptqmodel:5.0"]}},
        BITSANDBYTES | {"bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head"]},
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0},
    ],
)
def test_what_the_tools_write_is_taken(settings: dict[str, Any]) -> None:
    assert parse(settings).quant_method == settings["quant_method"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "fp8"}, r"quantization_config is {'quant_method': 'fp8'}: .*'awq'"),
        ({"bits": 4}, r"quantization_config is {'bits': 4}: .*quant_method"),
        (AWQ | {"bits": 3}, r"quantization_config.bits is 3: .*4"),
        (AWQ | {"version": "gemv"}, r"quantization_config.version is 'gemv': .*'gemm'"),
        (AWQ | {"format": "llm-awq"}, r"quantization_config.version is 'llm-awq'"),
        (AWQ | {"zero_point": False}, r"quantization_config.zero_point is False"),
        (AWQ | {"group_size": 0}, r"quantization_config.group_size is 0"),
        (GPTQ | {"bits": 2}, r"quantization_config.bits is 2: .*4 or 8"),
        (GPTQ | {"group_size": -2}, r"quantization_config.group_size is -2"),
        (GPTQ | {"checkpoint_format": "marlin"}, r"quantization_config.checkpoint_format is 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, r"quantization_config.checkpoint_format is 'marlin'"),
        (GPTQ | {"lm_head": True}, r"quantization_config.lm_head is True"),
        (GPTQ | {"dynamic": {"+:q_proj": {"bits": 8}}}, r"quantization_config.dynamic is {'\+:q_proj'"),
        (
            GPTQ | {"dynamic": {"-:lm_head": {}, "q_proj": {"bits": 8}}},
            ".*: 'q_proj' has settings of its own",
        ),
        (GPTQ | {"pack_dtype": "int16"}, r"quantization_config.pack_dtype is 'int16'"),
        ({"quant_method": "bitsandbytes"}, r".*: one of load_in_4bit and load_in_8bit must be true"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        parse(settings)


def test_a_checkpoint_that_is_quantised_is_not_quantised_again() -> None:
    assert in_flight(None, parse(AWQ)) is None
    assert in_flight("awq", parse(AWQ)) is None
    with pytest.raises(ConfigError, match="quantization is 'int8', but the checkpoint is quantised by awq"):
        in_flight("int8", parse(AWQ))


def test_a_plain_checkpoint_is_quantised_by_what_needs_no_sample_data() -> None:
    assert in_flight(None, None) is None
    assert in_flight("int8", None) is not None
    assert in_flight("bitsandbytes", None) is not None
    with pytest.raises(ConfigError, match="quantization is 'gptq', but the checkpoint is not quantised"):
        in_flight("gptq", None)
