"""Texts that grow side by side come out one after another."""

from __future__ import annotations

from workers.engine.cli.ordered_printer import Turns

FIRST, SECOND, THIRD = ("a", 0), ("a", 1), ("b", 0)


def test_the_first_open_text_is_written_as_it_grows_and_the_others_when_their_turn_comes() -> None:
    written: list[str] = []
    turns = Turns(written.append)
    for turn in (FIRST, SECOND, THIRD):
        turns.open(turn)

    turns.add(SECOND, "se")
    turns.add(FIRST, "fi")
    turns.end(THIRD, "third.")
    assert written == ["fi"]

    turns.add(FIRST, "rst")
    turns.end(FIRST, ".")
    assert written == ["fi", "rst", ".", "se"]

    turns.add(SECOND, "cond")
    turns.end(SECOND, "")
    assert written[4:] == ["cond", "third."]
