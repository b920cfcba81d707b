"""The two tasks of the real model: right answers, held-out examples that no training sees."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest

from examples.real.tasks import TASKS, Task, example_stream, held_out, is_held_out

TASK_LIST = list(TASKS.values())


@pytest.mark.parametrize("task", TASK_LIST, ids=lambda task: task.name)
def test_no_held_out_example_is_trained_on(task: Task) -> None:
    trained = set(islice(example_stream(task, "train", random.Random(1)), 300))

    asked = held_out(task, 20)

    assert len(set(asked)) == 20
    assert all(is_held_out(example.text) for example in asked)
    assert not trained & set(asked)
    assert held_out(task, 20) == asked


def test_an_order_becomes_json_of_what_it_says() -> None:
    for example in held_out(TASKS["orders"], 20):
        order = json.loads(example.answer)

        assert list(order) == ["item", "colour", "count"]
        assert f"{order['count']} {order['colour']} {order['item']}" in example.text


def test_both_verdicts_are_asked_for() -> None:
    answers = {example.answer for example in held_out(TASKS["sentiment"], 20)}

    assert answers == {"positive", "negative"}


def test_more_examples_than_a_task_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sentiment has \d+ held-out examples, 250 were asked: ask for"):
        held_out(TASKS["sentiment"], 250)
