"""Pieces of text become as few stream entries as they can."""

from __future__ import annotations

from uuid import uuid4

from db.records import JobAttempt
from lorayard.contract.messages import TokenEntry
from workers.token_writer import Piece, joined


def test_pieces_of_one_attempt_become_one_entry_with_the_first_place() -> None:
    one, other = JobAttempt(uuid4(), 1), JobAttempt(uuid4(), 3)
    pieces = [Piece(one, 4, 9, "ab"), Piece(other, 0, 0, "x"), Piece(one, 6, 11, "c")]

    assert joined(pieces) == {
        one: TokenEntry(attempt=1, token_offset=4, char_offset=9, text="abc"),
        other: TokenEntry(attempt=3, text="x"),
    }
