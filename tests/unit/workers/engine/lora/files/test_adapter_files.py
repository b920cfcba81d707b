from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.workers.engine.lora.adapter_writer import write_adapter
from workers.engine.core.errors import AdapterFileError, AdapterIOError, AdapterNotFound
from workers.engine.lora.files.adapter_files import find_files, read_files, stamp


def test_a_missing_folder_is_not_found_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(AdapterNotFound, match=r"adapter 'sql': there is no folder .*/gone; check the path"):
        find_files(tmp_path / "gone", "adapter 'sql'")
    with pytest.raises(AdapterNotFound, match=r"adapter 'sql': .*/file is a file; give the folder"):
        find_files(tmp_path / "file", "adapter 'sql'")


def test_behaviour_09_a_missing_configuration_and_missing_weights_are_named(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterFileError, match=r"'sql': adapter_model.safetensors is missing from"):
        find_files(folder, "adapter 'sql'")

    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match=r"'sql': adapter_config.json is missing from"):
        find_files(folder, "adapter 'sql'")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_behaviour_09_pickles_are_refused_unopened_with_the_way_out(name: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04not even a pickle")

    with pytest.raises(AdapterFileError, match=f"{name} is a pickle.*convert to safetensors"):
        find_files(folder, "adapter 'sql'")


def test_shards_are_all_needed(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / "adapter_model-00001-of-00003.safetensors")
    (folder / "adapter_model-00003-of-00003.safetensors").write_bytes(b"")

    with pytest.raises(AdapterFileError, match=r"of 3 weight shards these are missing: \[2\]"):
        find_files(folder, "adapter 'sql'")

    (folder / "adapter_model-00002-of-00003.safetensors").write_bytes(b"")
    assert len(find_files(folder, "adapter 'sql'")) == 4


def test_one_file_beside_shards_is_ambiguous(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model-00001-of-00001.safetensors").write_bytes(b"")

    with pytest.raises(AdapterFileError, match="both one weight file and shards"):
        find_files(folder, "adapter 'sql'")


def test_a_file_that_cannot_be_read_now_is_worth_another_try(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()

    with pytest.raises(AdapterIOError, match=r"reading .* failed") as raised:
        read_files(folder, "adapter 'sql'")
    assert raised.value.retryable


def test_the_stamp_changes_with_the_files_and_with_nothing_else(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    before = stamp(folder)

    (folder / "notes.txt").write_text("x")
    assert stamp(folder) == before
    write_adapter(folder, rank=4)
    assert stamp(folder) != before
    assert stamp(tmp_path / "gone") is None
