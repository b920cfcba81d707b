"""The shipped base and adapters: the engine answers as transformers with PEFT do, and right."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from examples.tiny.oracle import Oracle
from examples.tiny.recipe import ADAPTERS_DIR, BASE_DIR
from examples.tiny.tasks import TASKS, prompt, sample_words
from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams

pytestmark = pytest.mark.numeric

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
LORAS = {
    name: LoRARequest(name, index, str(ADAPTERS_DIR / name)) for index, name in enumerate(TASKS, start=1)
}
NUM_WORDS = 6


class Question(NamedTuple):
    """A prompt, the adapter it goes to, and what the oracle says."""

    prompt: str
    adapter: str | None
    token_ids: list[int]
    text: str
    right: str | None


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Held-out words for the base and every adapter, neighbours always differing."""
    oracle = Oracle()
    by_adapter: list[list[Question]] = []
    for name in [*TASKS, None]:
        words = sample_words(name or next(iter(TASKS)), "held_out", NUM_WORDS, seed=3)
        answers = oracle.answers([prompt(word) for word in words], name)
        by_adapter.append(
            [
                Question(
                    prompt(word),
                    name,
                    answer.token_ids,
                    answer.text,
                    TASKS[name].answer(word) if name else None,
                )
                for word, answer in zip(words, answers, strict=True)
            ]
        )
    return [question for row in zip(*by_adapter, strict=True) for question in row]


def ask(engine: LLMEngine, questions: list[Question]) -> list[RequestOutput]:
    loras = [None if question.adapter is None else LORAS[question.adapter] for question in questions]
    return engine.generate([question.prompt for question in questions], GREEDY, lora_request=loras)


def make_engine(max_loras: int, max_cpu_loras: int, max_num_seqs: int = 32) -> LLMEngine:
    return LLMEngine(
        EngineConfig(
            model=str(BASE_DIR),
            enable_lora=True,
            max_loras=max_loras,
            max_cpu_loras=max_cpu_loras,
            max_lora_rank=16,
            max_num_seqs=max_num_seqs,
            num_threads=1,
        )
    )


@pytest.mark.parametrize(
    ("max_loras", "max_cpu_loras", "max_num_seqs"),
    [
        pytest.param(len(TASKS), len(TASKS), 66, id="all in one batch"),
        pytest.param(2, 4, 32, id="more adapters than slots"),
        pytest.param(1, 1, 32, id="one slot and one host place"),
    ],
)
def test_mixed_answers_equal_the_oracle_s(
    questions: list[Question], max_loras: int, max_cpu_loras: int, max_num_seqs: int
) -> None:
    engine = make_engine(max_loras, max_cpu_loras, max_num_seqs)

    outputs = ask(engine, questions)

    assert [output.outputs[0].token_ids for output in outputs] == [
        question.token_ids for question in questions
    ]
    assert [output.outputs[0].text for output in outputs] == [question.text for question in questions]
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    engine.close()


@pytest.mark.parametrize("name", list(TASKS))
def test_each_adapter_alone_answers_its_task_right(questions: list[Question], name: str) -> None:
    engine = make_engine(1, 1)
    own = [question for question in questions if question.adapter == name]

    outputs = ask(engine, own)

    assert [output.outputs[0].token_ids for output in outputs] == [question.token_ids for question in own]
    right = [output.outputs[0].text == question.right for output, question in zip(outputs, own, strict=True)]
    assert sum(right) >= NUM_WORDS - 1
    engine.close()


def test_every_load_is_charged_to_one_request(questions: list[Question]) -> None:
    engine = make_engine(max_loras=2, max_cpu_loras=2)

    outputs = ask(engine, questions)

    uses = [output.metrics.adapter_use for output in outputs]
    counted = engine.stats().adapters
    assert counted is not None
    assert sum(use.loads for use in uses) == counted.loads >= len(TASKS)
    assert sum(use.load_ms for use in uses) == pytest.approx(counted.load_ms)
    assert sum(use.hits for use in uses) == counted.hits
    # Each of the last evictions would be charged to the next request with that adapter.
    left_for_good = len(TASKS) - counted.num_on_host
    assert sum(use.evictions for use in uses) == counted.evictions - left_for_good
    assert not any(
        use.loads for use, question in zip(uses, questions, strict=True) if question.adapter is None
    )
