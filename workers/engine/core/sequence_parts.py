"""What a sequence holds that other rooms make, as the core looks upon it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.engine.core.errors import InvalidParams


class TokenShifts(NamedTuple):
    """Numbers to be added to a row's logits; a token may be named twice."""

    token_ids: list[int]
    values: list[float]


class TokenPenalties(NamedTuple):
    """What a row's logits lose, [num_seen] each: divide or multiply by the factor, then deduct."""

    token_ids: NDArray[np.int64]
    factors: NDArray[np.float32]
    deductions: NDArray[np.float32]


class TokenRules(Protocol):
    """What one request forbids, favours and penalises; see `sampling.token_rules`."""

    def append(self, token_id: int) -> None:
        """Take note of a generated token."""
        ...

    def shifts(self) -> TokenShifts | None:
        """Return what to add to the next token's logits."""
        ...

    def penalties(self) -> TokenPenalties | None:
        """Return what the tokens seen so far lose."""
        ...


class Grammar(Protocol):
    """Which tokens may come next in a structured output; see `structured_output.grammar`."""

    error: InvalidParams | None
    """Why the request cannot go on."""

    def is_ready(self) -> bool:
        """Whether it has been compiled; raises `InvalidParams` if it cannot be."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        ...

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Set the bits of the tokens that may come next; `mask` is [ceil(vocab_size / 32)]."""
        ...

    def advance(self, token_id: int) -> None:
        """Take note of the token that was chosen."""
        ...


class StopChecker(Protocol):
    """Watches the generated text for stop strings; see `text.detokenizer`."""

    @property
    def text(self) -> str:
        """The text so far, cut at the stop string once one was found."""
        ...

    @property
    def num_certain_chars(self) -> int:
        """Length of the text that no stop string to come can take back."""
        ...

    def push(self, token_id: int, *, is_armed: bool = True) -> str | None:
        """Add one token; return the stop string it completed."""
        ...


class KeyChain(Protocol):
    """The keys of a sequence's full KV blocks; see `kv.prefix_keys`."""

    identity: bytes

    @property
    def known(self) -> list[bytes]:
        """The keys made so far."""
        ...

    def first(self, num_blocks: int, token_ids: Sequence[int]) -> list[bytes]:
        """Return the keys of the first blocks; all their tokens must be there, and never change."""
        ...
