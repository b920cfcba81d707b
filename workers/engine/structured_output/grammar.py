"""Which tokens may come next in one completion that must follow a grammar."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from workers.engine.core.errors import InvalidParams

MAX_TOKEN_S = 0.5
"""Processor time that one token's mask may cost before its request is ended: everybody waits for it."""
_ANY_TOKEN = -1


class Grammar:
    """The state behind one completion's grammar; mutable, advanced with each token."""

    __slots__ = ("_clock", "_compiled", "_matcher", "_num_ids", "_vocab_size", "error")

    def __init__(
        self,
        compiled: Future[LLMatcher],
        vocab_size: int,
        num_ids: int,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """The tokenizer may know more ids (`num_ids`) than the model has logits (`vocab_size`)."""
        self._compiled = compiled
        self._vocab_size = vocab_size
        self._num_ids = num_ids
        self._clock = clock
        self._matcher: LLMatcher | None = None
        self.error: InvalidParams | None = None
        """Why the request cannot go on."""

    def is_ready(self) -> bool:
        """Whether the grammar has been compiled; raises `InvalidParams` if it cannot be."""
        if self._matcher is None and self._compiled.done():
            self._matcher = self._compiled.result().deep_copy()
        return self._matcher is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return self._matcher is not None and self._matcher.is_stopped() and self.error is None

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Set the bits of the tokens that may come next; `mask` is [ceil(vocab_size / 32)].

        If the grammar fails, all are allowed and `error` is set.
        """
        began_s = self._clock()
        if self.error is None:
            self._fill(mask)
            self._check(began_s)
        if self.error is not None:
            mask[:] = _ANY_TOKEN

    def _fill(self, mask: NDArray[np.int32]) -> None:
        if self._num_ids == self._vocab_size:
            llguidance.numpy.fill_next_token_bitmask(self._ready_matcher(), mask[None, :], 0)
            return
        wide = np.zeros((1, -(-self._num_ids // 32)), dtype=np.int32)  # the matcher takes no other width
        llguidance.numpy.fill_next_token_bitmask(self._ready_matcher(), wide, 0)
        mask[:] = wide[0, : len(mask)]
        if rest := self._vocab_size % 32:
            mask[-1] &= (1 << rest) - 1

    def advance(self, token_id: int) -> None:
        """Take note of the token that was chosen."""
        began_s = self._clock()
        if self.error is None:
            self._ready_matcher().consume_token(token_id)
            self._check(began_s)

    def _ready_matcher(self) -> LLMatcher:
        assert self._matcher is not None, "a request was served before its grammar was compiled"
        return self._matcher

    def _check(self, began_s: float) -> None:
        matcher, took_s = self._ready_matcher(), self._clock() - began_s
        if matcher.is_error():
            self.error = InvalidParams(f"the grammar cannot be followed: {first_line(matcher.get_error())}")
        elif took_s > MAX_TOKEN_S:
            self.error = InvalidParams(
                f"the grammar took {took_s:.1f} s for one token, {MAX_TOKEN_S:g} s are given; simplify it"
            )


def first_line(text: str) -> str:
    """Return what a library says in its first line, shortened."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 200 else line[:197] + "..."
