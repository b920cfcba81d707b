"""Puts texts that grow side by side into one stream, one after another."""

from __future__ import annotations

from collections.abc import Callable

Turn = tuple[str, int]
"""A request and the index of its completion."""


class OrderedPrinter:
    """Lets the first open text through as it grows, and keeps the others back until their turn comes."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._kept: dict[Turn, str] = {}
        self._ended: set[Turn] = set()

    def open(self, turn: Turn) -> None:
        """Give a text its place, behind all others."""
        self._kept[turn] = ""

    def add(self, turn: Turn, text: str) -> None:
        """Let a text grow."""
        self._kept[turn] += text
        self._let_through()

    def end(self, turn: Turn, text: str) -> None:
        """Let a text grow for the last time."""
        self._ended.add(turn)
        self.add(turn, text)

    def _let_through(self) -> None:
        while self._kept:
            first = next(iter(self._kept))
            if self._kept[first]:
                self._write(self._kept[first])
                self._kept[first] = ""
            if first not in self._ended:
                return
            del self._kept[first]
