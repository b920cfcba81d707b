"""Grammars are compiled once, and refused if they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from tests.polling import eventually
from workers.engine.core.errors import InvalidParams
from workers.engine.structured_output import GrammarCompiler, StructuredOutputsParams

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "base"


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TINY / "tokenizer.json", vocab_size=365, eos_token_ids=[2])
    yield compiler
    compiler.close()


def test_completions_with_the_same_grammar_share_its_compilation_and_nothing_else(
    compiler: GrammarCompiler,
) -> None:
    one, other = (compiler.grammar(StructuredOutputsParams(regex="ab")) for _ in range(2))
    eventually(lambda: one.is_ready() and other.is_ready(), what="the compiled grammar")

    token_a, token_b = (ord(letter) - ord("a") + 335 for letter in "ab")
    one.advance(token_a)
    one.advance(token_b)

    assert one.is_complete
    assert not other.is_complete
    assert len(compiler._compiled) == 1


def test_too_many_grammars_at_once_are_refused(compiler: GrammarCompiler) -> None:
    def ask_for(number: int) -> None:
        for size in range(number):
            compiler.grammar(StructuredOutputsParams(regex=f"a{{{size}}}"))

    with pytest.raises(InvalidParams, match="64 grammars are waiting to be compiled; try again later"):
        ask_for(200)


def test_a_token_that_takes_too_long_ends_its_request(compiler: GrammarCompiler) -> None:
    grammar = compiler.grammar(StructuredOutputsParams(regex="ab"))
    eventually(grammar.is_ready, what="the compiled grammar")
    times_s = iter([0.0, 0.6])
    grammar._clock = lambda: next(times_s)

    grammar.advance(335)

    assert grammar.error is not None
    assert "took 0.6 s for one token" in str(grammar.error)


@pytest.mark.parametrize("vocab_size", [352, 336])
def test_a_tokenizer_may_know_more_tokens_than_the_model_has_logits(
    compiler: GrammarCompiler, vocab_size: int
) -> None:
    smaller = GrammarCompiler(
        (TINY / "tokenizer.json").read_text(), vocab_size=vocab_size, eos_token_ids=[2], num_token_ids=365
    )
    whole, part = (one.grammar(StructuredOutputsParams(regex="[a-z]+")) for one in (compiler, smaller))
    eventually(lambda: whole.is_ready() and part.is_ready(), what="the compiled grammars")
    everything, ours = np.zeros(12, dtype=np.int32), np.full(-(-vocab_size // 32), -1, dtype=np.int32)

    whole.fill(everything)
    part.fill(ours)
    smaller.close()

    expected = np.unpackbits(everything.view(np.uint8), bitorder="little")
    assert expected[vocab_size:].any()
    expected[vocab_size:] = 0
    bits = np.unpackbits(ours.view(np.uint8), bitorder="little")
    assert bits.tolist() == expected[: len(bits)].tolist()
    assert part.error is None


def test_a_tokenizer_that_cannot_follow_grammars_is_named(tmp_path: Path) -> None:
    vocab = {f"word{number}": number for number in range(400)}
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="word0")).save(str(path))
    compiler = GrammarCompiler(path, vocab_size=365, eos_token_ids=[2])

    with pytest.raises(InvalidParams, match="tokenizer cannot follow grammars"):
        compiler.grammar(StructuredOutputsParams(regex="ab"))
