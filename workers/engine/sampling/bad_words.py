"""Words a request must not generate, as sequences of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from workers.engine.core.errors import InvalidParams

Encode = Callable[[str], list[int]]


class BadWords:
    """Knows which tokens would complete a bad word; a word of one token is barred at once."""

    __slots__ = ("_by_last_but_one", "_single")

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self._single: list[int] = []
        # Only words whose last token but one has just been generated can be completed by the next.
        self._by_last_but_one: dict[int, list[list[int]]] = {}
        for word in words:
            if len(word) == 1:
                self._single.append(word[0])
            else:
                self._by_last_but_one.setdefault(word[-2], []).append(list(word))

    def barred_after(self, output_token_ids: Sequence[int]) -> list[int]:
        """Return the tokens that may not come next."""
        if not output_token_ids or not self._by_last_but_one:
            return self._single
        words = self._by_last_but_one.get(output_token_ids[-1], ())
        return self._single + [word[-1] for word in words if _ends_with(output_token_ids, word[:-1])]


def tokenize_bad_words(words: Iterable[str], encode: Encode) -> list[list[int]]:
    """Return the token sequences of `words`: as they stand, and as they follow a space.

    As in vLLM, the second form counts only if the space melts into another first token and adds none.
    `encode` adds no special tokens.
    """
    sequences = []
    for word in words:
        bare = word.lstrip()
        plain = encode(bare) if bare else []
        if not plain:
            raise InvalidParams(f"bad word {word!r:.80} has no tokens of its own; leave it out")
        sequences.append(plain)
        spaced = encode(f" {bare}")
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            sequences.append(spaced)
    return sequences


def _ends_with(token_ids: Sequence[int], ending: Sequence[int]) -> bool:
    return len(token_ids) >= len(ending) and list(token_ids[-len(ending) :]) == ending
