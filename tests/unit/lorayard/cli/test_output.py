"""Rows for people and for programs."""

from __future__ import annotations

import json

import pytest

from lorayard.cli.output import printable, show_rows

ROWS = [{"id": "x" * 60, "tokens": 12_345, "ms": 1.25, "note": None, "hidden": 1}]


def test_a_table_shows_the_columns_asked_for_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(ROWS, ("id", "tokens", "ms", "note"), as_json=False, none="nothing")

    shown = capsys.readouterr().out
    assert all(text in shown for text in ("x" * 60, "12,345", "1.2", " - "))
    assert "hidden" not in shown


def test_markup_in_a_value_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([{"id": "[red]x[/red]"}], ("id",), as_json=False, none="nothing")

    assert "[red]x[/red]" in capsys.readouterr().out


def test_control_characters_in_a_value_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([{"id": "\x1b[31m\x9b", "of": ["a\r", "b"]}], ("id", "of"), as_json=False, none="nothing")

    shown = capsys.readouterr().out
    assert r"\x1b[31m\x9b" in shown
    assert r"a\r; b" in shown
    assert printable("two\nlines\x1b") == "two\nlines\\x1b"


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(ROWS * 2, ("tokens", "note"), as_json=True, none="nothing")

    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"tokens": 12_345, "note": None}
    ] * 2


@pytest.mark.parametrize(("as_json", "shown"), [(False, "nothing\n"), (True, "")])
def test_no_rows_are_told_to_people_only(
    as_json: bool, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_rows([], ("id",), as_json=as_json, none="nothing")

    assert capsys.readouterr().out == shown
