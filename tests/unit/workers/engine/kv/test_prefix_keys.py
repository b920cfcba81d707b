"""Two blocks have one key only if all that their keys and values depend on is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.kv.prefix_keys import KeyChain, base_fingerprint, kv_identity

IDENTITY = kv_identity("base", "float32", [], None)
DIFFERENT = {
    "another base": kv_identity("other", "float32", [], None),
    "another dtype": kv_identity("base", "bfloat16", [], None),
    "an adapter": kv_identity("base", "float32", [("sha256:a", 1.0)], None),
    "another scale": kv_identity("base", "float32", [("sha256:a", 0.5)], None),
    "two adapters": kv_identity("base", "float32", [("sha256:a", 1.0), ("sha256:b", 1.0)], None),
    "their other order": kv_identity("base", "float32", [("sha256:b", 1.0), ("sha256:a", 1.0)], None),
    "a salt": kv_identity("base", "float32", [], "tenant"),
    "an empty salt": kv_identity("base", "float32", [], ""),
    "a salt that looks like an adapter": kv_identity("base", "float32", [], '[["sha256:a", 1.0]]'),
}


def test_everything_that_keys_and_values_depend_on_is_in_the_identity() -> None:
    assert len({IDENTITY, *DIFFERENT.values()}) == 1 + len(DIFFERENT)
    assert kv_identity("base", "float32", [("sha256:a", 1)], None) == DIFFERENT["an adapter"]


@given(
    one=st.lists(st.integers(0, 2), min_size=2, max_size=12),
    other=st.lists(st.integers(0, 2), min_size=2, max_size=12),
)
def test_keys_are_equal_exactly_where_all_tokens_up_to_there_are(one: list[int], other: list[int]) -> None:
    size = 2
    keys = KeyChain(IDENTITY, size).first(len(one) // size, one)
    others = KeyChain(IDENTITY, size).first(len(other) // size, other)

    for index, key in enumerate(keys):
        assert others.count(key) == (one[: (index + 1) * size] == other[: (index + 1) * size])


@pytest.mark.parametrize("identity", DIFFERENT.values(), ids=DIFFERENT)
def test_another_identity_changes_every_key(identity: bytes) -> None:
    tokens = list(range(8))

    keys, others = KeyChain(IDENTITY, 2).first(4, tokens), KeyChain(identity, 2).first(4, tokens)

    assert not set(keys) & set(others)


def test_a_chain_grows_without_changing_what_it_gave() -> None:
    chain = KeyChain(IDENTITY, 2)

    short = chain.first(1, [5, 6])

    assert chain.first(3, [5, 6, 7, 8, 9, 10])[:1] == short
    assert chain.first(1, [5, 6]) == short


def test_a_checkpoint_that_was_written_again_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = base_fingerprint(tmp_path)

    assert base_fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"three")
    assert base_fingerprint(tmp_path) != before
