"""Entries that are put aside go in blocks of bounded size."""

from __future__ import annotations

from db.records import RejectedEntry
from scheduler.rejects import MAX_BLOCK_BYTES, MAX_BLOCK_ENTRIES, Reject, _blocks, _to_row
from scheduler.streams import StreamEntry


def rows(*sizes: int) -> list[RejectedEntry]:
    return [RejectedEntry("jobs", "1-1", bytes(size), "odd") for size in sizes]


def sizes(*of_rows: int) -> list[list[int]]:
    return [[len(row.body) for row in block] for block in _blocks(rows(*of_rows))]


def test_ten_thousand_small_entries_take_twenty_transactions() -> None:
    assert [len(block) for block in _blocks(rows(*[10] * 10_000))] == [MAX_BLOCK_ENTRIES] * 20


def test_large_entries_fill_a_block_by_their_bytes_and_one_above_the_bound_stands_alone() -> None:
    half, huge = MAX_BLOCK_BYTES // 2, MAX_BLOCK_BYTES + 1

    assert sizes(half, half, half, huge, 1) == [[half, half], [half], [huge], [1]]
    assert sizes() == []


def test_what_postgres_takes_no_text_of_is_kept_as_bytes_with_a_readable_reason() -> None:
    row = _to_row(Reject(StreamEntry("jobs", "1-1", {b"other": b"\x00\xff"}), "a\x00\ud800" + "b" * 5000))

    assert row.body == b"other=\x00\xff"
    assert row.error.startswith("a?b")
    assert len(row.error) == 2000
