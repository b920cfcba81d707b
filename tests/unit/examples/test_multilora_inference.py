"""The example of several adapters and one slot: the other adapter waits, and every answer is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples import multilora_inference as example
from examples.tiny.tasks import TASKS
from workers.engine import LoRARequest

ROOT = Path(__file__).parents[3]


def test_every_question_is_answered_though_the_adapters_take_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)

    example.main()

    lines = capsys.readouterr().out.splitlines()
    starts = [line for line in lines if " runs, " in line]
    assert sorted(int(line.split()[0]) for line in starts) == list(range(len(example.QUESTIONS)))
    assert any(not line.endswith(" 0 wait") for line in starts)
    assert sorted(line for line in lines if re.match(r"\d \w+: ", line)) == [
        f"{number} {'base' if lora is None else lora.lora_name}: {prompt} {right(prompt, lora)}"
        for number, (prompt, lora) in enumerate(example.QUESTIONS)
    ]


def right(prompt: str, lora: LoRARequest | None) -> str:
    word = prompt.removesuffix(">")
    return word if lora is None else TASKS[lora.lora_name].answer(word)
