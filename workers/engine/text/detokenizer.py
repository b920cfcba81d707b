"""Turns tokens into text one at a time, never splitting a character, and spots stop strings."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
"""Tokens decoded again with each new one: the longest character has four bytes, so none is cut in two."""


class IncrementalDetokenizer:
    """Decodes a growing list of tokens; what it has given out is always a beginning of the whole's text.

    Text is held back while later tokens may still change it: the first bytes of a character, and, with
    tokenizers that fall back to single bytes, a run of those, which is text only if all of it is.
    """

    __slots__ = ("_byte_ids", "_decode", "_is_silent", "_num_told", "_window")

    def __init__(
        self,
        decode: Decode,
        *,
        is_silent: Callable[[int], bool] = lambda _: False,
        byte_ids: Container[int] = (),
    ) -> None:
        """`is_silent` tells the tokens that `decode` leaves out; `byte_ids` stand for one byte each."""
        self._decode = decode
        self._is_silent = is_silent
        self._byte_ids = byte_ids
        self._window: list[int] = []
        self._num_told = 0  # characters of the window's text

    def push(self, token_id: int) -> str:
        """Add one token and return the text that became certain with it, often the empty string."""
        if self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        if token_id in self._byte_ids:
            return ""
        certain = self._certain_text()
        new_text = certain[self._num_told :]
        self._num_told = len(certain)
        if len(self._window) >= 2 * _CONTEXT_TOKENS:
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._num_told = len(self._certain_text())
        return new_text

    def open_run(self) -> str:
        """Return the text of a run of bytes that has not ended; more bytes can still change it."""
        if not self._window or self._window[-1] not in self._byte_ids:
            return ""
        return self._decode(self._window)[self._num_told :].rstrip(_REPLACEMENT)

    def _certain_text(self) -> str:
        # A trailing replacement character may be the first bytes of a character still to come.
        return self._decode(self._window).removesuffix(_REPLACEMENT)


class StopSearch:
    """Looks for stop strings in a growing text, in each part of it once."""

    __slots__ = ("_num_searched", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._num_searched = 0

    def find(self, text: str, *, is_armed: bool) -> list[tuple[int, str]]:
        """Return the stop strings that the text completes, with the places where they begin."""
        searched, self._num_searched = self._num_searched, len(text)
        if not is_armed:
            return []
        starts = [(stop, max(0, searched - len(stop) + 1)) for stop in self._stops]
        return [(at, stop) for stop, start in starts if (at := text.find(stop, start)) >= 0]

    def num_begun_chars(self, text: str) -> int:
        """Return how many characters at the end of `text` may begin a stop string."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


class SpelledStops:
    """Finds stop strings that name tokens which the text leaves out, in a text that has them."""

    __slots__ = ("_detokenizer", "_left_out", "_search", "_silent", "_text")

    def __init__(
        self, stops: Sequence[str], detokenizer: IncrementalDetokenizer, silent: Mapping[int, str]
    ) -> None:
        """`detokenizer` leaves out nothing; `silent` are the tokens that the other text does without."""
        self._search = StopSearch(stops)
        self._detokenizer = detokenizer
        self._silent = silent
        self._left_out: list[tuple[int, int]] = []  # where they stand in the text: first character, and end
        self._text = ""

    def push(self, token_id: int, num_shown: int, *, is_armed: bool) -> list[tuple[int, str]]:
        """Add one token; return the stop strings found, with their places among `num_shown` characters."""
        self._text += self._detokenizer.push(token_id)
        content = self._silent.get(token_id)
        if content is not None and self._text.endswith(content):
            self._left_out.append((len(self._text) - len(content), len(self._text)))
        text = self._text + self._detokenizer.open_run()
        found = self._search.find(text, is_armed=is_armed)
        return [(max(0, num_shown - self._num_shown(at, len(text))), stop) for at, stop in found]

    @property
    def num_begun_chars(self) -> int:
        """Characters at the end of the text without the tokens that may begin a stop string."""
        return self._num_shown(len(self._text) - self._search.num_begun_chars(self._text), len(self._text))

    def _num_shown(self, start: int, end: int) -> int:
        hidden = (max(0, min(last, end) - max(first, start)) for first, last in self._left_out)
        return end - start - sum(hidden)


class StopChecker:
    """Watches the generated text for the first complete stop string."""

    __slots__ = ("_detokenizer", "_keeps_stop", "_search", "_spelled", "_text")

    def __init__(
        self,
        stops: Sequence[str],
        detokenizer: IncrementalDetokenizer,
        *,
        keeps_stop: bool = False,
        spelled: SpelledStops | None = None,
    ) -> None:
        """`keeps_stop` leaves the stop string itself in the text; `spelled` knows more stop strings."""
        self._search = StopSearch(stops)
        self._detokenizer = detokenizer
        self._keeps_stop = keeps_stop
        self._spelled = spelled
        self._text = ""

    @property
    def text(self) -> str:
        """The text so far, cut at the stop string once one was found."""
        return self._text

    @property
    def num_certain_chars(self) -> int:
        """Length of the text that no stop string to come can take back."""
        if self._keeps_stop:
            return len(self._text)
        begun = self._search.num_begun_chars(self._text)
        if self._spelled is not None:
            begun = max(begun, self._spelled.num_begun_chars)
        return max(0, len(self._text) - begun)

    def push(self, token_id: int, *, is_armed: bool = True) -> str | None:
        """Add one token; return the stop string it completed, the earliest in the text if several.

        Until it is armed nothing stops it, and what was complete by then never will.
        """
        self._text += self._detokenizer.push(token_id)
        text = self._text + self._detokenizer.open_run()
        found = self._search.find(text, is_armed=is_armed)
        if self._spelled is not None:
            found += self._spelled.push(token_id, len(text), is_armed=is_armed)
        if not found:
            return None
        at, stop = min(found)
        self._text = text[:at] + stop if self._keeps_stop else text[:at]
        return stop


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`, never all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
