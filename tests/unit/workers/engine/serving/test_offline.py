"""A list of prompts is served to its end, in order, with a bar for those who watch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from examples.tiny.recipe import ADAPTERS_DIR, BASE_DIR
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams
from workers.engine.core.errors import InvalidPrompt

GREEDY = SamplingParams(max_tokens=16, temperature=0.0)
UPPER = LoRARequest("upper", 1, str(ADAPTERS_DIR / "upper"))


class Bar:
    """Stands in for tqdm and remembers."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.postfix = ""
        self.done = 0
        self.is_closed = False

    def update(self, num: int) -> None:
        self.done += num

    def close(self) -> None:
        self.is_closed = True


class Interrupted(Bar):
    """Somebody presses Ctrl-C when the first answer is there."""

    def update(self, num: int) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def engine() -> Iterator[LLMEngine]:
    with LLMEngine(EngineConfig(model=str(BASE_DIR), enable_lora=True, num_threads=1)) as engine:
        yield engine


def texts(outputs: list[Any]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_a_bar_counts_the_prompts_and_says_the_speed(engine: LLMEngine) -> None:
    bars: list[Bar] = []

    def make(**options: Any) -> Bar:
        bars.append(Bar(**options))
        return bars[0]

    engine.generate(["hello>", "banana>"], GREEDY, use_tqdm=make)

    bar = bars[0]
    assert (bar.options["total"], bar.done, bar.is_closed) == (2, 2, True)
    assert "output: " in bar.postfix
    assert bar.postfix.endswith(" toks/s")


def test_the_bar_is_drawn_on_a_terminal_only(
    engine: LLMEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.generate("hello>", GREEDY)
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    engine.generate("hello>", GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""
    engine.generate("hello>", GREEDY)
    shown = capsys.readouterr()
    assert "Processed prompts: 100%" in shown.err
    assert "toks/s" in shown.err
    assert shown.out == ""


def test_what_interrupts_a_call_ends_its_requests_and_no_others(engine: LLMEngine) -> None:
    engine.add_request("mine", "melon>", GREEDY, UPPER)

    with pytest.raises(KeyboardInterrupt):
        engine.generate(["hello>", "pear>", "strawberry>"], GREEDY, use_tqdm=Interrupted)

    left = []
    while engine.has_unfinished_requests():
        left += engine.step()
    assert [(output.request_id, output.outputs[0].text) for output in left] == [("mine", "MELON")]


def test_chat_answers_one_conversation_or_each_of_several(engine: LLMEngine) -> None:
    first, second = ([{"role": "user", "content": f"{word}>"}] for word in ("hello", "melon"))

    assert texts(engine.chat(first, GREEDY, UPPER)) == ["HELLO"]
    assert texts(engine.chat([first, second], GREEDY, [None, UPPER])) == ["hello", "MELON"]


@pytest.mark.parametrize("messages", ["hello>", [], [[]], ["hello>"], [[1, 2]]])
def test_what_is_no_conversation_is_refused(engine: LLMEngine, messages: Any) -> None:
    with pytest.raises(InvalidPrompt, match="give a list of dicts with role and content"):
        engine.chat(messages, GREEDY)


def test_a_with_block_closes_its_engine_even_on_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(LLMEngine, "close", lambda engine: closed.append(engine))

    with pytest.raises(ZeroDivisionError), LLMEngine(EngineConfig(model=str(BASE_DIR))) as engine:
        1 / 0  # noqa: B018  (any error)

    assert closed == [engine]
