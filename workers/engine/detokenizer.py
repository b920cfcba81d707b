"""Turns tokens into text one at a time, never splitting a character, and spots stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
"""Tokens decoded again before each new one, for decoders whose output depends on what precedes."""


class IncrementalDetokenizer:
    """Decodes a growing list of tokens; text is given out only when whole characters are known."""

    __slots__ = ("_context", "_decode", "_pending")

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Add one token and return the text that became certain with it, often the empty string."""
        self._pending.append(token_id)
        text = self._new_text()
        # A trailing replacement character may be the first bytes of a character still to come.
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._context = (self._context + self._pending)[-_CONTEXT_TOKENS:]
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :]


class StopChecker:
    """Watches the generated text for the first complete stop string."""

    __slots__ = ("_detokenizer", "_keeps_stop", "_stops", "_text")

    def __init__(
        self, stops: Sequence[str], detokenizer: IncrementalDetokenizer, *, keeps_stop: bool = False
    ) -> None:
        """`keeps_stop` leaves the stop string itself in the text."""
        self._stops = tuple(stops)
        self._detokenizer = detokenizer
        self._keeps_stop = keeps_stop
        self._text = ""

    @property
    def text(self) -> str:
        """The text so far, cut at the stop string once one was found."""
        return self._text

    def push(self, token_id: int, *, is_armed: bool = True) -> str | None:
        """Add one token; return the stop string it completed, the earliest in the text if several.

        Until it is armed nothing stops it, and what was complete by then never will.
        """
        new_text = self._detokenizer.push(token_id)
        length = len(self._text)
        self._text += new_text
        if not new_text or not is_armed:
            return None
        starts = [(stop, max(0, length - len(stop) + 1)) for stop in self._stops]
        found = [(at, stop) for stop, start in starts if (at := self._text.find(stop, start)) >= 0]
        if not found:
            return None
        at, stop = min(found)
        self._text = self._text[: at + len(stop)] if self._keeps_stop else self._text[:at]
        return stop
