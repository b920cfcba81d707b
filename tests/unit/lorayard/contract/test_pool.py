"""A pool's id changes with whatever changes its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorayard.contract.pool import pool_id


def write_checkpoint(folder: Path, hidden_size: int = 8, header: str = "{}", payload: bytes = b"w") -> Path:
    """Write what of a checkpoint the pool's id looks at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": hidden_size}))
    encoded = header.encode()
    (folder / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + payload)
    return folder


def test_copies_of_a_checkpoint_are_one_pool(tmp_path: Path) -> None:
    one, other = write_checkpoint(tmp_path / "a"), write_checkpoint(tmp_path / "b")

    assert pool_id(one, "float32") == pool_id(other, "float32")
    assert len(pool_id(one, "float32")) == 16


def test_whatever_changes_answers_changes_the_pool(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "a")
    ids = [
        pool_id(base, "float32"),
        pool_id(base, "bfloat16"),
        pool_id(base, "float32", "nf4"),
        pool_id(base, "float32", generation_config="none"),
        pool_id(write_checkpoint(tmp_path / "b", hidden_size=16), "float32"),
        pool_id(write_checkpoint(tmp_path / "c", header='{"a":1}'), "float32"),
        pool_id(write_checkpoint(tmp_path / "d", payload=b"longer"), "float32"),
    ]

    assert len(set(ids)) == len(ids)


def test_a_folder_without_a_configuration_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no config.json: point LORAYARD_MODEL"):
        pool_id(tmp_path, "float32")


def test_a_folder_without_weights_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} holds no \*.safetensors"):
        pool_id(tmp_path, "float32")


def test_a_header_length_beyond_the_file_reads_no_further_than_the_file(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path)
    (base / "model.safetensors").write_bytes(b"\xff" * 8 + b"short")

    assert len(pool_id(base, "float32")) == 16
