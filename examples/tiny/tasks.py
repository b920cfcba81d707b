"""The adapters' tasks as pure functions: what the right answer to every prompt is."""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Split = Literal["train", "held_out"]

MIN_LETTERS, MAX_LETTERS = 3, 8
PROMPT_END = ">"
VOWELS = "aeiou"
CONSONANTS = "".join(letter for letter in string.ascii_lowercase if letter not in VOWELS)
_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter's skill: a rule from a word of 3 to 8 lower-case letters to its answer."""

    name: str
    summary: str
    rule: Callable[[str], str]

    def answer(self, word: str) -> str:
        """Return the right answer to `prompt(word)`."""
        return self.rule(word)

    def accepts(self, word: str) -> bool:
        """Say whether `word` is a fair input: the bare base echoes its input, so an echo proves nothing."""
        return self.answer(word) not in ("", word)


def prompt(word: str) -> str:
    """Return the prompt that asks base and adapters alike about `word`."""
    return f"{word}{PROMPT_END}"


def is_held_out(word: str) -> bool:
    """Say whether `word` is kept from all training; the word alone decides, whatever the seed or task."""
    return zlib.crc32(word.encode()) % _HELD_OUT_ONE_IN == 0


def word_stream(rng: random.Random, split: Split) -> Iterator[str]:
    """Yield words of `split` without end: half random letters, half syllables that can be spoken."""
    while True:
        word = (_random_letters if rng.random() < 0.5 else _syllables)(rng)
        if is_held_out(word) == (split == "held_out"):
            yield word


def sample_words(task: str, split: Split, count: int, seed: int) -> list[str]:
    """Return `count` distinct inputs of the named task; the same arguments give the same words."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    words = word_stream(random.Random(f"{task}/{split}/{seed}"), split)
    return list(islice(_distinct(filter(TASKS[task].accepts, words)), count))


def _distinct(words: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    for word in words:
        if word not in seen:
            seen.add(word)
            yield word


def _random_letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(MIN_LETTERS, MAX_LETTERS)))


def _syllables(rng: random.Random) -> str:
    kinds = (CONSONANTS, VOWELS) if rng.random() < 0.7 else (VOWELS, CONSONANTS)
    length = rng.randint(MIN_LETTERS, MAX_LETTERS)
    return "".join(rng.choice(kinds[position % 2]) for position in range(length))


def _shift(letters: int) -> Callable[[str], str]:
    alphabet = string.ascii_lowercase
    table = str.maketrans(alphabet, alphabet[letters:] + alphabet[:letters])
    return lambda word: word.translate(table)


def _keep(letters: str) -> Callable[[str], str]:
    return lambda word: "".join(letter for letter in word if letter in letters)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("upper", "upper case", str.upper),
        Task("reverse", "backwards", lambda word: word[::-1]),
        Task("rot13", "each letter 13 places on", _shift(13)),
        Task("sort", "letters in alphabetical order", lambda word: "".join(sorted(word))),
        Task("vowels", "vowels only", _keep(VOWELS)),
        Task("consonants", "consonants only", _keep(CONSONANTS)),
        Task("twice", "each letter twice", lambda word: "".join(letter * 2 for letter in word)),
        Task("swapends", "first and last letter exchanged", lambda word: word[-1] + word[1:-1] + word[0]),
        Task("nextletter", "each letter one place on", _shift(1)),
        Task("rotate", "first letter moved to the end", lambda word: word[1:] + word[0]),
    )
}
