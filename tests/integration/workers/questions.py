"""Jobs with known answers, over all shipped adapters."""

from __future__ import annotations

from typing import NamedTuple

from examples.tiny.tasks import TASKS, prompt, sample_words
from lorayard.contract.job import JobSpec


class Question(NamedTuple):
    """A job and its right answer."""

    spec: JobSpec
    answer: str


def questions(count: int, seed: int = 11) -> list[Question]:
    """Ask every adapter in turn."""
    names = list(TASKS)
    words = {name: sample_words(name, "held_out", count // len(names) + 1, seed) for name in names}
    asked = [(names[number % len(names)], number // len(names)) for number in range(count)]
    return [
        Question(
            JobSpec(prompt=prompt(words[name][index]), adapter=name, max_tokens=24),
            TASKS[name].answer(words[name][index]),
        )
        for name, index in asked
    ]
