"""Each setting of `make test-levels` runs where it can show something, and says what is lacking elsewhere."""

from __future__ import annotations

import pytest

from tests.levels import INSTRUCTION_SETS, INTEL, SETTINGS, Processor

AMD_AVX2 = Processor("AuthenticAMD", "AMD EPYC", ("avx2",))
INTEL_AMX = Processor(INTEL, "Intel Xeon", INSTRUCTION_SETS)


def test_a_processor_with_everything_runs_every_setting() -> None:
    assert [INTEL_AMX.lacks(setting) for setting in SETTINGS] == [None] * len(SETTINGS)


@pytest.mark.parametrize(
    ("setting", "lack"),
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
    ],
)
def test_what_a_processor_lacks_is_named(setting: str, lack: str | None) -> None:
    (asked,) = (one for one in SETTINGS if str(one) == setting)

    assert AMD_AVX2.lacks(asked) == lack
