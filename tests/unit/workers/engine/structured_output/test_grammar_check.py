"""The child that tries forms answers, dies of what is too much, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from workers.engine.core.errors import InvalidParams
from workers.engine.core.structured_outputs import FormSource
from workers.engine.structured_output.compiler import LIMITS, llguidance_text
from workers.engine.structured_output.grammar_check import Vetter, VetterSetup

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "base"

MakeVetter = Callable[[Path], Vetter]


@pytest.fixture
def make_vetter() -> Iterator[MakeVetter]:
    vetters: list[Vetter] = []

    def make(tokenizer_file: Path) -> Vetter:
        setup = VetterSetup(str(tokenizer_file), vocab_size=365, eos_token_ids=[2], limits=LIMITS, cpu_s=0)
        vetters.append(Vetter(setup))
        return vetters[-1]

    yield make
    for vetter in vetters:
        vetter.close()


def test_a_form_that_kills_the_child_is_the_last_one_it_gets(make_vetter: MakeVetter) -> None:
    vetter = make_vetter(TINY / "tokenizer.json")
    good, bad = (llguidance_text(FormSource("regex", text)) for text in ("a+b", "a?" * 2000 + "a{100000000}"))

    first, killed, second = vetter.problem(good), vetter.problem(bad), vetter.problem(good)

    assert (first, second) == (None, None)
    assert killed is not None


def test_a_tokenizer_that_llguidance_cannot_use_is_named(make_vetter: MakeVetter, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocab = {f"word{number}": number for number in range(400)}
    tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="word0")).save(str(path))

    with pytest.raises(InvalidParams, match="tokenizer cannot follow forms"):
        make_vetter(path).problem(llguidance_text(FormSource("regex", "a")))
