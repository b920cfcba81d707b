"""The example of quantised bases: the adapter's answers stay right upon every one."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import lora_with_quantization_inference as example

ROOT = Path(__file__).parents[3]


def test_base_and_adapter_answer_upon_every_kind_of_quantised_base(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)

    example.main()

    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" bytes)")]
    names, answers = zip(*(line.rpartition(" (")[0].split(": ") for line in lines), strict=True)
    held = [int(line.rpartition(" (")[2].split()[0]) for line in lines]
    assert names == ("plain", "bitsandbytes NF4, in flight", "int8, in flight", "AWQ", "GPTQ")
    assert set(answers) == {"lantern garden morning LANTERN GARDEN MORNING"}
    assert [round(size / held[0], 2) for size in held] == [1.0, 0.28, 0.52, 0.33, 0.33]
