"""Each setting of `make test-levels` runs where it can show something, and says why it does not elsewhere."""

from __future__ import annotations

import pytest

from tests.levels import INSTRUCTION_SETS, INTEL, SETTINGS, Processor

AMD_AVX2 = Processor("AuthenticAMD", "AMD EPYC", ("avx2",))
INTEL_AMX = Processor(INTEL, "Intel Xeon", INSTRUCTION_SETS)


def test_a_processor_with_everything_runs_every_setting_but_what_it_need_not_emulate() -> None:
    reasons = {str(setting): INTEL_AMX.refuses(setting) for setting in SETTINGS}

    assert reasons.pop("LORAYARD_TESTS_EMULATE=avx512_bf16") == "this processor has avx512_bf16 itself"
    assert reasons.pop("LORAYARD_TESTS_EMULATE=amx_products") == "this processor has amx_bf16 itself"
    assert set(reasons.values()) == {None}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("ONEDNN_MAX_CPU_ISA=AVX2", None),
        ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16", "this processor has no avx512_bf16"),
        (
            "MKL_ENABLE_INSTRUCTIONS=AVX2",
            "MKL_ENABLE_INSTRUCTIONS does nothing on AuthenticAMD, only on GenuineIntel",
        ),
        ("ATEN_CPU_CAPABILITY=avx2", None),
        ("LORAYARD_CPU_LEVEL=avx2", "this processor has no avx512_bf16"),
        ("LORAYARD_CPU_LEVEL=torch", None),
        ("LORAYARD_TESTS_EMULATE=avx512_bf16", None),
        ("LORAYARD_TESTS_EMULATE=amx_products", None),
    ],
)
def test_why_a_setting_is_skipped_is_said(setting: str, reason: str | None) -> None:
    (asked,) = (one for one in SETTINGS if str(one) == setting)

    assert AMD_AVX2.refuses(asked) == reason
