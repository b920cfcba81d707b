"""The distinct tokens of one sequence and how often each was generated, kept up token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SPARE = 64
"""Places made ready at a time; the arrays double, so a token costs the same however long the text."""


class SeenTokens:
    """Prompt tokens count 0 until they are generated as well."""

    __slots__ = ("_counts", "_places", "_token_ids")

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        distinct = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
        self._places = {int(token_id): place for place, token_id in enumerate(distinct)}
        self._token_ids = np.concatenate((distinct, np.zeros(_SPARE, dtype=np.int64)))
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Each token once, in order of first appearance; a view that later tokens may change."""
        return self._token_ids[: len(self)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of them was generated."""
        return self._counts[: len(self)]

    def append(self, token_id: int) -> None:
        """Count one generated token."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self)
            if place == len(self._token_ids):
                self._token_ids = np.concatenate((self._token_ids, np.zeros_like(self._token_ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._token_ids[place] = token_id
        self._counts[place] += 1.0
