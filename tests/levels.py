"""Runs the numeric tests with the processor's instructions held back or emulated, one setting after another.

`make test-levels` is `python -m tests.levels`; what is given behind it goes to pytest. A setting that this
processor cannot show is skipped with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[1]
INTEL = "GenuineIntel"
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What distinguishes the processors that matter here, least first, as Linux names it."""


class Setting(NamedTuple):
    """An environment variable that holds instructions back or emulates them, and what it needs."""

    variable: str
    value: str
    needs: str | None = None  # an instruction set; for our own levels the next better one
    vendor: str | None = None
    emulates: str | None = None  # an instruction set

    def __str__(self) -> str:
        return f"{self.variable}={self.value}"


SETTINGS = (
    Setting("ONEDNN_MAX_CPU_ISA", "AVX2", "avx2"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", "avx512_bf16"),
    Setting("MKL_ENABLE_INSTRUCTIONS", "AVX2", "avx2", INTEL),
    Setting("MKL_ENABLE_INSTRUCTIONS", "AVX512", "avx512f", INTEL),
    Setting("ATEN_CPU_CAPABILITY", "avx2", "avx2"),
    Setting("LORAYARD_CPU_LEVEL", "avx2", "avx512_bf16"),
    Setting("LORAYARD_CPU_LEVEL", "torch"),
    Setting("LORAYARD_TESTS_EMULATE", "avx512_bf16", "avx2", emulates="avx512_bf16"),
    Setting("LORAYARD_TESTS_EMULATE", "amx_products", "avx2", emulates="amx_bf16"),
)
VARIABLES = tuple(dict.fromkeys(setting.variable for setting in SETTINGS))


@dataclass(frozen=True, slots=True)
class Processor:
    """The first processor of this machine, as /proc/cpuinfo describes it."""

    vendor: str
    name: str
    instruction_sets: tuple[str, ...]

    @classmethod
    def of_this_machine(cls) -> Self:
        """Read /proc/cpuinfo; without it nothing is known and nothing can be shown."""
        path = Path("/proc/cpuinfo")
        lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name, family, model = (facts.get(key, "?") for key in ("model name", "cpu family", "model"))
        flags = facts.get("flags", "").split()
        found = tuple(one for one in INSTRUCTION_SETS if one in flags)
        return cls(facts.get("vendor_id", "?"), f"{name}, family {family} model {model}", found)

    def refuses(self, setting: Setting) -> str | None:
        """Say why this processor cannot show a setting; None if it can."""
        if setting.vendor not in (None, self.vendor):
            return f"{setting.variable} does nothing on {self.vendor}, only on {setting.vendor}"
        if setting.needs not in (None, *self.instruction_sets):
            return f"this processor has no {setting.needs}"
        if setting.emulates in self.instruction_sets:
            return f"this processor has {setting.emulates} itself"
        return None

    def __str__(self) -> str:
        return f"{self.name} ({self.vendor}), {' '.join(self.instruction_sets) or 'no AVX2'}"


def main(arguments: list[str]) -> int:
    """Run every setting that this processor can show; return 1 if one failed."""
    processor = Processor.of_this_machine()
    outcomes: dict[Setting, str] = {}
    has_failed = False
    for setting in SETTINGS:
        reason = processor.refuses(setting)
        if reason is not None:
            outcomes[setting] = f"skipped: {reason}"
            continue
        print(f"\n{setting}", flush=True)
        has_passed, outcomes[setting] = _run(setting, arguments)
        has_failed |= not has_passed
    print(f"\nnumeric tests on {processor}:")
    for setting, outcome in outcomes.items():
        print(f"  {setting}: {outcome}")
    return int(has_failed)


def _run(setting: Setting, arguments: list[str]) -> tuple[bool, str]:
    """Run pytest in a process of its own, for libraries read these variables once; return its last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "tests/unit", *arguments]
    others = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment = others | {setting.variable: setting.value}
    last = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip(" =\n") or last
    return process.returncode == 0, last


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
