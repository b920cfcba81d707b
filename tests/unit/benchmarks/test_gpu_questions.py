"""What the script for a card holds answers to: the record is what the CPU's engine says today."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.gpu.questions import answers_of_the_cpu, recorded, shipped_questions

pytestmark = pytest.mark.numeric


def test_the_record_is_what_the_engine_answers_on_a_cpu() -> None:
    answers, record = answers_of_the_cpu(), recorded()

    assert list(answers) == list(record)
    assert {name: answer.token_ids for name, answer in answers.items()} == {
        name: answer.token_ids for name, answer in record.items()
    }
    for name, answer in answers.items():
        assert answer.logprobs == pytest.approx(record[name].logprobs, abs=1e-3), name


def test_neighbours_in_the_batch_have_different_adapters() -> None:
    names = [question.name.split()[0] for question, _ in shipped_questions()]

    assert len(names) == 54
    assert all(one != other for one, other in pairwise(names))
