"""The child that tries grammars answers, dies of what is too much, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from workers.engine.core.errors import InvalidParams
from workers.engine.core.structured_outputs import GrammarSpec
from workers.engine.structured_output.compiler import LIMITS, llguidance_text
from workers.engine.structured_output.grammar_check import GrammarCheck, GrammarCheckSetup

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "base"

MakeCheck = Callable[[Path], GrammarCheck]


@pytest.fixture
def make_check() -> Iterator[MakeCheck]:
    checks: list[GrammarCheck] = []

    def make(tokenizer_file: Path) -> GrammarCheck:
        setup = GrammarCheckSetup(
            str(tokenizer_file), vocab_size=365, num_ids=365, eos_token_ids=[2], limits=LIMITS, cpu_s=0
        )
        checks.append(GrammarCheck(setup))
        return checks[-1]

    yield make
    for check in checks:
        check.close()


def test_a_grammar_that_kills_the_child_is_the_last_one_it_gets(make_check: MakeCheck) -> None:
    check = make_check(TINY / "tokenizer.json")
    good, bad = (
        llguidance_text(GrammarSpec("regex", text)) for text in ("a+b", "a?" * 2000 + "a{100000000}")
    )

    first, killed, second = check.problem(good), check.problem(bad), check.problem(good)

    assert (first, second) == (None, None)
    assert killed is not None


def test_a_tokenizer_that_llguidance_cannot_use_is_named(make_check: MakeCheck, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocab = {f"word{number}": number for number in range(400)}
    tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="word0")).save(str(path))

    with pytest.raises(InvalidParams, match="tokenizer cannot follow grammars"):
        make_check(path).problem(llguidance_text(GrammarSpec("regex", "a")))
