"""Texts that grow side by side come out one after another."""

from __future__ import annotations

from workers.engine.cli.ordered_printer import OrderedPrinter

FIRST, SECOND, THIRD = ("a", 0), ("a", 1), ("b", 0)


def test_the_first_open_text_is_written_as_it_grows_and_the_others_when_their_turn_comes() -> None:
    written: list[str] = []
    printer = OrderedPrinter(written.append)
    for turn in (FIRST, SECOND, THIRD):
        printer.open(turn)

    printer.add(SECOND, "se")
    printer.add(FIRST, "fi")
    printer.end(THIRD, "third.")
    assert written == ["fi"]

    printer.add(FIRST, "rst")
    printer.end(FIRST, ".")
    assert written == ["fi", "rst", ".", "se"]

    printer.add(SECOND, "cond")
    printer.end(SECOND, "")
    assert written[4:] == ["cond", "third."]
