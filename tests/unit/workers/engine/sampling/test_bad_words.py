"""A bad word is barred at its last token, and only if the tokens before it have just been generated."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from workers.engine.core.errors import InvalidParams
from workers.engine.sampling.bad_words import BadWords, tokenize_bad_words
from workers.engine.text.tokenizer import Tokenizer


def test_a_word_of_one_token_is_always_barred() -> None:
    words = BadWords([[5], [9]])

    assert words.barred_after([]) == [5, 9]
    assert words.barred_after([1, 5]) == [5, 9]


@pytest.mark.parametrize(
    ("output", "barred"),
    [
        ([], []),
        ([3], [4]),
        ([2], []),
        ([2, 3], [4, 7]),
        ([1, 2, 3], [4, 7, 8]),
        ([3, 2, 1], []),
        ([2, 3, 9], []),
    ],
)
def test_the_last_token_is_barred_after_all_the_others(output: list[int], barred: list[int]) -> None:
    assert BadWords([[3, 4], [2, 3, 7], [1, 2, 3, 8]]).barred_after(output) == barred


@pytest.fixture(scope="module")
def merging_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with whole words, which differ by the space before them."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {symbol: index for index, symbol in enumerate(sorted(alphabet))}
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("d", "o"), ("do", "g")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, None)


def test_a_word_is_barred_with_the_space_before_it_where_that_is_another_token(
    merging_tokenizer: Tokenizer,
) -> None:
    encode = merging_tokenizer.encode_bare

    assert tokenize_bad_words(["cat"], encode) == [encode("cat"), encode(" cat")]
    assert tokenize_bad_words([" cat"], encode) == [encode("cat"), encode(" cat")]
    assert tokenize_bad_words(["cats"], encode) == [encode("cats"), encode(" cats")]
    assert tokenize_bad_words(["dog"], encode) == [encode("dog")]  # the space is a token of its own


def test_special_tokens_are_no_part_of_a_word(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_folder(checkpoint)

    assert tokenize_bad_words(["ab"], tokenizer.encode_bare) == [tokenizer.encode("ab")[1:]]


def test_a_word_without_tokens_is_refused(merging_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidParams, match="bad word '  ' has no tokens of its own; leave it out"):
        tokenize_bad_words(["cat", "  "], merging_tokenizer.encode_bare)
