"""What a checkpoint says of its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.checkpoint import describe_pool


def checkpoint(folder: Path, vocabulary: Any = None, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    if vocabulary is not None:
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return folder


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 1024}, 1024),
        ({"max_position_embeddings": 131_072}, 2048),
        ({"max_position_embeddings": 131_072, "original_max_position_embeddings": 512}, 512),
        ({}, 2048),
    ],
)
def test_without_a_choice_of_the_operators_the_models_own_limit_counts_up_to_a_default(
    config: dict[str, int], limit: int, tmp_path: Path
) -> None:
    assert describe_pool(checkpoint(tmp_path, **config), "float32", None).max_model_len == limit


def test_the_operators_choice_counts_which_a_worker_refuses_if_the_model_cannot_have_it(
    tmp_path: Path,
) -> None:
    model = checkpoint(tmp_path, max_position_embeddings=1024)

    assert describe_pool(model, "float32", 256).max_model_len == 256
    assert describe_pool(model, "float32", 4096).max_model_len == 4096  # its positions may be scaled


@pytest.mark.parametrize(
    ("served_model_name", "name"), [(None, "someone/tiny"), ("", "someone/tiny"), ("another", "another")]
)
def test_jobs_name_the_model_as_it_is_served(
    served_model_name: str | None, name: str, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path, max_position_embeddings=100, _name_or_path="someone/tiny")

    assert describe_pool(model, "float32", None, served_model_name).model_name == name


@pytest.mark.parametrize("vocabulary", [{"a" * 40: 0, "b": 1}, [["a" * 40, -1.0], ["b", -2.0]]])
def test_the_longest_token_bounds_the_bytes_of_a_prompt(tmp_path: Path, vocabulary: Any) -> None:
    model = checkpoint(tmp_path, vocabulary, max_position_embeddings=100)

    assert describe_pool(model, "float32", None).max_prompt_bytes == 100 * 40


def test_a_model_without_a_readable_vocabulary_refuses_next_to_nothing(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, max_position_embeddings=100)

    assert describe_pool(model, "float32", None).max_prompt_bytes == 100 * 256


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="LORAYARD_MODEL"):
        describe_pool(tmp_path, "float32", None)
