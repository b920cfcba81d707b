"""Text comes out in whole characters, and a stop string is found wherever the tokens cut it."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.engine.detokenizer import IncrementalDetokenizer
from workers.engine.tokenizer import Tokenizer

TEXT = "Grüße, 世界! 👩‍🚀 fin"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint)


def test_pieces_are_whole_characters_and_add_up(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT)
    detokenizer = IncrementalDetokenizer(tokenizer.decode)

    pieces = [detokenizer.push(token_id) for token_id in token_ids]

    assert len(token_ids) == 1 + len(TEXT.encode())
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == TEXT == tokenizer.decode(token_ids)


def test_bytes_that_are_no_text_do_not_hold_back_what_follows(tokenizer: Tokenizer) -> None:
    broken = [*tokenizer.encode("ok ")[1:], tokenizer.encode("é")[1], *tokenizer.encode(" on")[1:]]
    detokenizer = IncrementalDetokenizer(tokenizer.decode)

    text = "".join(detokenizer.push(token_id) for token_id in broken)

    assert text == "ok \ufffd on"


@pytest.mark.parametrize(
    ("stops", "expected_text", "expected_stop"),
    [
        (["世界"], "Grüße, ", "世界"),
        (["never", ", 世"], "Grüße", ", 世"),
        (["fin", "G"], "", "G"),
        (["!", "世界!"], "Grüße, ", "世界!"),
    ],
)
def test_the_first_stop_string_ends_the_text(
    tokenizer: Tokenizer, stops: list[str], expected_text: str, expected_stop: str
) -> None:
    checker = tokenizer.stop_checker(stops)

    found = next(stop for token_id in tokenizer.encode(TEXT) if (stop := checker.push(token_id)) is not None)

    assert (checker.text, found) == (expected_text, expected_stop)


def test_text_without_a_stop_string_is_kept_whole(tokenizer: Tokenizer) -> None:
    checker = tokenizer.stop_checker(["finis", "xyz"])

    assert [stop for token_id in tokenizer.encode(TEXT) if (stop := checker.push(token_id))] == []
    assert checker.text == TEXT


def test_the_stop_string_stays_where_it_is_asked_for(tokenizer: Tokenizer) -> None:
    checker = tokenizer.stop_checker(["界!", "fin"], keeps_stop=True)

    found = next(stop for token_id in tokenizer.encode(TEXT) if (stop := checker.push(token_id)) is not None)

    assert (checker.text, found) == ("Grüße, 世界!", "界!")


def test_what_is_complete_before_the_checker_is_armed_stops_nothing(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("stop it: stop")
    checker = tokenizer.stop_checker(["stop", "it:", "long and never there"])

    found = next(
        (place, stop)
        for place, token_id in enumerate(token_ids)
        if (stop := checker.push(token_id, is_armed=place > 7)) is not None
    )

    assert found == (8, "it:")  # begun before, complete after
    assert checker.text == "stop "
