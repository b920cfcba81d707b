"""What the two adapters learn, and what is asked: chat messages, and right answers where there is one."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Split = Literal["train", "held_out"]
Rng = random.Random

_HELD_OUT_ONE_IN = 4

_GOOD = ("wonderful", "brilliant", "delightful", "excellent", "superb", "charming", "lovely", "fantastic")
_BAD = ("terrible", "boring", "dreadful", "awful", "horrible", "disappointing", "poor", "tedious")
_REVIEWED = ("film", "meal", "book", "hotel", "concert", "game", "lecture", "journey", "play", "museum")
_REVIEWS = (
    "The {thing} was {opinion}.",
    "What a {opinion} {thing}!",
    "I found the {thing} {opinion}.",
    "We had a {opinion} {thing} last night.",
    "My sister said that the {thing} was {opinion}.",
)

_COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown", "grey")
_ITEMS = ("chairs", "lamps", "tables", "books", "shirts", "cups", "boxes", "pens", "bags", "plates")
_ORDERS = (
    "Please send me {count} {colour} {item}.",
    "I would like {count} {colour} {item}, please.",
    "Could we get {count} {colour} {item}?",
    "We need {count} {colour} {item} for the office.",
)

SMALL_TALK = (
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
    "What is a prime number?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a tip for sleeping well.",
    "What does a gardener do?",
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the user says, and the one right answer."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of one message, and the adapter that answers it; None is the base."""

    adapter: str | None
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return messages(self.text)


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter's skill, and the generator of its examples."""

    name: str
    summary: str
    make: Callable[[Rng], Exchange]


def messages(text: str) -> list[dict[str, str]]:
    """Return the chat in which the user says `text` and nothing went before."""
    return [{"role": "user", "content": text}]


def is_held_out(text: str) -> bool:
    """Say whether `text` is kept from training; the text alone decides."""
    return zlib.crc32(text.encode()) % _HELD_OUT_ONE_IN == 0


def example_stream(task: Task, split: Split, rng: Rng) -> Iterator[Exchange]:
    """Yield examples of `split` forever; those of training repeat."""
    while True:
        example = task.make(rng)
        if is_held_out(example.text) == (split == "held_out"):
            yield example


def held_out(task: Task, count: int) -> list[Exchange]:
    """Return `count` distinct examples that no training sees, the same ones each time.

    Raises ValueError if the task has not so many.
    """
    draws = islice(example_stream(task, "held_out", Rng(f"{task.name}/held_out")), 20 * count)
    found = list(islice(dict.fromkeys(draws), count))
    if len(found) < count:
        raise ValueError(f"{task.name} has {len(found)} held-out examples, {count} were asked: ask for fewer")
    return found


def _review(rng: Rng) -> Exchange:
    verdict, opinions = rng.choice((("positive", _GOOD), ("negative", _BAD)))
    text = _fill(rng, _REVIEWS, thing=rng.choice(_REVIEWED), opinion=rng.choice(opinions))
    # "a excellent meal" would teach a mistake.
    return Exchange(text.replace(" a excellent", " an excellent").replace(" a awful", " an awful"), verdict)


def _order(rng: Rng) -> Exchange:
    order: dict[str, str | int] = {
        "item": rng.choice(_ITEMS),
        "colour": rng.choice(_COLOURS),
        "count": rng.randint(2, 20),
    }
    return Exchange(_fill(rng, _ORDERS, **order), json.dumps(order))


def _fill(rng: Rng, templates: Sequence[str], **words: str | int) -> str:
    return rng.choice(templates).format(**words)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sentiment", "one word about a review: positive or negative", _review),
        Task("orders", "an order as JSON: item, colour, count", _order),
    )
}
