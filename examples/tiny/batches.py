"""Training batches: prompts and answers of the training split, with loss on the answer alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from examples.tiny.tasks import TASKS, prompt, word_stream
from examples.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID, TAGS, build_tokenizer

_IGNORED = -100  # the label that torch's cross entropy skips
_POOL_BATCHES = 8


class Example(NamedTuple):
    """One sequence and where its answer begins."""

    token_ids: list[int]
    num_prompt_tokens: int


class Batch(NamedTuple):
    """Right-padded tensors; under a causal mask the padding behind a sequence cannot reach it."""

    token_ids: Tensor  # [batch_size, num_tokens]
    labels: Tensor  # [batch_size, num_tokens]


class Encoder:
    """Turns (opening token, word, answer) into token ids."""

    def __init__(self) -> None:
        self._vocab = build_tokenizer().get_vocab()
        self.tag_ids = {name: self._vocab[tag] for name, tag in TAGS.items()}

    def example(self, opening_id: int, word: str, answer: str) -> Example:
        """Return the sequence `opening word> answer </s>`."""
        prompt_ids = [opening_id, *(self._vocab[letter] for letter in prompt(word))]
        answer_ids = [*(self._vocab[letter] for letter in answer), EOS_ID]
        return Example(prompt_ids + answer_ids, len(prompt_ids))


def base_examples(rng: random.Random) -> Iterator[Example]:
    """Yield the base's diet: each task behind its tag, and as often the echo behind a plain `<s>`.

    The tag stands where `<s>` stands otherwise, so an adapter has only to make `<s>` look like
    a tag that the base already knows: a low rank is enough for that.
    """
    encoder = Encoder()
    words = word_stream(rng, "train")
    skills: list[str | None] = [*TASKS, None]
    while True:
        skill, word = rng.choice(skills), next(words)
        if skill is None:
            yield encoder.example(BOS_ID, word, word)
        elif TASKS[skill].accepts(word):
            yield encoder.example(encoder.tag_ids[skill], word, TASKS[skill].answer(word))


def adapter_examples(task: str, rng: random.Random) -> Iterator[Example]:
    """Yield untagged prompts with the answers of one task."""
    encoder = Encoder()
    for word in filter(TASKS[task].accepts, word_stream(rng, "train")):
        yield encoder.example(BOS_ID, word, TASKS[task].answer(word))


def batches(examples: Iterator[Example], batch_size: int, rng: random.Random) -> Iterator[Batch]:
    """Yield batches of sequences of like length, which halves the padding that is computed."""
    while True:
        pool = sorted(
            (next(examples) for _ in range(batch_size * _POOL_BATCHES)), key=lambda e: len(e.token_ids)
        )
        starts = list(range(0, len(pool), batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield collate(pool[start : start + batch_size], PAD_ID)


def collate(examples: list[Example], pad_id: int) -> Batch:
    """Pad sequences on the right to one length; labels are the answers, and nothing before them."""
    width = max(len(example.token_ids) for example in examples)
    token_ids = torch.full((len(examples), width), pad_id)
    labels = torch.full((len(examples), width), _IGNORED)
    for row, (ids, num_prompt_tokens) in enumerate(examples):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, num_prompt_tokens : len(ids)] = token_ids[row, num_prompt_tokens : len(ids)]
    return Batch(token_ids, labels)
