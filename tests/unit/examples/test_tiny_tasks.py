"""The tasks give right answers, and training never sees what tests ask."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from examples.tiny.tasks import TASKS, is_held_out, prompt, sample_words, word_stream

EXPECTED = {
    "upper": "BANANA",
    "reverse": "ananab",
    "rot13": "onanan",
    "sort": "aaabnn",
    "vowels": "aaa",
    "consonants": "bnn",
    "twice": "bbaannaannaa",
    "swapends": "aananb",
    "nextletter": "cbobob",
    "rotate": "ananab",
}


def test_each_task_answers_a_known_word() -> None:
    assert {name: task.answer("banana") for name, task in TASKS.items()} == EXPECTED


def test_the_last_letter_wraps_around_to_the_first() -> None:
    assert TASKS["nextletter"].answer("zaz") == "aba"


def test_a_prompt_is_the_word_and_an_arrow() -> None:
    assert prompt("abcde") == "abcde>"


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_distinct_fair_and_of_the_split_asked_for(task: str) -> None:
    held_out = sample_words(task, "held_out", 300, seed=1)
    train = sample_words(task, "train", 300, seed=1)

    assert len(set(held_out)) == len(set(train)) == 300
    assert all(is_held_out(word) for word in held_out)
    assert not any(is_held_out(word) for word in train)
    assert all(TASKS[task].answer(word) not in ("", word) for word in held_out + train)
    assert {len(word) for word in held_out} == set(range(3, 9))


def test_the_same_seed_gives_the_same_words_and_another_seed_others() -> None:
    words = sample_words("sort", "held_out", 5, seed=1)

    assert words == sample_words("sort", "held_out", 5, seed=1)
    assert words != sample_words("sort", "held_out", 5, seed=2)
    assert words != sample_words("upper", "held_out", 5, seed=1)


def test_the_samples_stay_what_they_were_when_the_weights_were_measured() -> None:
    assert sample_words("upper", "held_out", 4, seed=1) == ["xafo", "uxuhije", "owusob", "gucow"]


def test_the_training_stream_never_yields_a_held_out_word() -> None:
    words = list(islice(word_stream(random.Random(3), "train"), 5000))

    assert not any(is_held_out(word) for word in words)


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'shout': choose one of upper, reverse"):
        sample_words("shout", "train", 1, seed=0)
