"""Text comes out in whole characters, and a stop string is found wherever the tokens cut it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from workers.engine.text.detokenizer import IncrementalDetokenizer
from workers.engine.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "base"
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


def _byte_level() -> Tokenizer:
    """One token a byte, some pairs of bytes that cut characters, two special tokens, holes behind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é世👩")[0][0]
    pairs = [pieces[at : at + 2] for at in range(len(pieces) - 1)]
    vocab = {symbol: number for number, symbol in enumerate([*alphabet, *dict.fromkeys(pairs)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, None)


def _sentencepiece_like() -> Tokenizer:
    """Spaces as a mark, single bytes if a character has no token, the first space left out."""
    words = ["\u2581", "\u2581a", "\u2581\u2581", "b", ".", "é"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, None)


KINDS = {
    "byte level": _byte_level(),
    "sentencepiece": _sentencepiece_like(),
    "shipped": Tokenizer.from_folder(TINY),
}
STOPS = st.lists(st.text("ab. é世", min_size=1, max_size=3), max_size=2)
PARTS = st.one_of(
    st.text("ab. é世👩", min_size=1, max_size=4).map(lambda text: ("text", text)),
    st.binary(min_size=1, max_size=3).map(lambda raw: ("bytes", raw)),
    st.lists(st.integers(0, 400), min_size=1, max_size=8).map(lambda token_ids: ("ids", token_ids)),
)


def _token_ids(tokenizer: Tokenizer, parts: list[tuple[str, Any]]) -> list[int]:
    """Text as it is tokenised, bytes that need not be text, ids of any kind, unknown ones among them."""
    token_ids: list[int] = []
    for kind, value in parts:
        if kind == "text":
            token_ids += tokenizer.encode_bare(str(value))
        elif kind == "bytes":
            token_ids += list(bytes(value))
        else:
            token_ids += value
    return token_ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(PARTS, max_size=12), skips=st.booleans())
def test_pieces_are_always_a_beginning_of_the_decoded_whole(
    kind: str, parts: list[tuple[str, Any]], skips: bool
) -> None:
    tokenizer = KINDS[kind]
    token_ids = _token_ids(tokenizer, parts)
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skips)

    told = ""
    for number, token_id in enumerate(token_ids, start=1):
        told += detokenizer.push(token_id)
        assert tokenizer.decode(token_ids[:number], skip_special_tokens=skips).startswith(told)

    held = len(tokenizer.decode(token_ids, skip_special_tokens=skips)) - len(told)
    assert held <= 1 or kind != "byte level"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(PARTS, max_size=12), stops=STOPS, keeps_stop=st.booleans())
def test_what_is_certain_survives_every_stop_string(
    kind: str, parts: list[tuple[str, Any]], stops: list[str], keeps_stop: bool
) -> None:
    tokenizer = KINDS[kind]
    token_ids = _token_ids(tokenizer, parts)
    checker = tokenizer.stop_checker(stops, keeps_stop=keeps_stop)

    told: list[str] = []
    stop = None
    for number, token_id in enumerate(token_ids, start=1):
        stop = checker.push(token_id)
        if stop is not None:
            token_ids = token_ids[:number]
            break
        told.append(checker.text[: checker.num_certain_chars])

    whole = checker.text if stop is not None else tokenizer.decode(token_ids)
    assert all(whole.startswith(text) for text in told)
    decoded = tokenizer.decode(token_ids)
    found = [at + len(text) if keeps_stop else at for text in stops if (at := decoded.find(text)) >= 0]
    assert whole == (decoded[: min(found)] if stop is not None and not keeps_stop else whole)
    assert stop is not None or not found


def test_a_run_of_bytes_is_held_back_until_it_is_known_to_be_text() -> None:
    tokenizer = KINDS["sentencepiece"]
    first_byte = tokenizer.encode_bare("世")[0]
    good = [*tokenizer.encode_bare("b世"), *tokenizer.encode_bare("b")]
    bad = [*good[:-1], first_byte, good[-1]]

    for token_ids, ending in ((good, "世b"), (bad, "\ufffd" * 4 + "b")):
        pieces = ["b", *[""] * (len(token_ids) - 2), ending]
        detokenizer = tokenizer.detokenizer()
        assert [detokenizer.push(token_id) for token_id in token_ids] == pieces
        assert "".join(pieces) == tokenizer.decode(token_ids)


def test_a_stop_string_ends_a_run_of_bytes_at_once() -> None:
    tokenizer = KINDS["sentencepiece"]
    checker = tokenizer.stop_checker(["世"])

    found = [checker.push(token_id) for token_id in tokenizer.encode_bare("b世")]

    assert (found, checker.text) == ([None, None, None, "世"], "b")


def test_tokens_without_end_cost_the_same_each() -> None:
    tokenizer = KINDS["byte level"]
    detokenizer = tokenizer.detokenizer()
    broken = tokenizer.encode_bare("é")[0]

    pieces = [detokenizer.push(broken) for _ in range(500)]

    assert "".join(pieces) == "\ufffd" * 499
    assert len(detokenizer._window) < 20
