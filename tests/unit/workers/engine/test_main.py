"""The engine answers from a shell."""

from __future__ import annotations

import pytest

from examples.tiny.recipe import ADAPTERS_DIR, BASE_DIR
from workers.engine.__main__ import main


def test_it_prints_one_answer_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = str(ADAPTERS_DIR / "upper")

    status = main([str(BASE_DIR), "banana>", "melon>", "--adapter", adapter, "--threads", "1"])

    assert status == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["BANANA", "MELON"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x"], "checkpoint: model 'nowhere' is no folder"),
        ([str(BASE_DIR), ""], "invalid_prompt: the prompt is empty"),
        ([str(BASE_DIR), "x", "--max-tokens", "0"], "invalid_params: max_tokens is 0"),
        ([str(BASE_DIR), "x", "--adapter", "nowhere"], "adapter_not_found: "),
    ],
)
def test_what_cannot_be_done_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--threads", "1"]) == 1

    assert message in capsys.readouterr().err
