from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.workers.engine.lora.adapter_writer import write_adapter
from workers.engine.core.errors import AdapterFileError, AdapterIOError, AdapterNotFound, AdapterTooLarge
from workers.engine.lora.files.adapter_files import find_files, read_files, stamp
from workers.engine.lora.files.digest import adapter_digest


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
    (folder / "adapter_model.safetensors").symlink_to(folder / "adapter_model.safetensors")  # a loop

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


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("adapter_config.json", "adapters.safetensors"), "'adapters.safetensors', an adapter of mlx-lm"),
        (("adapter_config.json", "adapter_0.pt"), "'adapter_0.pt', an adapter of torchtune"),
        (("out/adapter_config.json",), r"its sub-folders with one are 'out'; give one .*/here/out'"),
        (("model.safetensors", "config.json"), "'model.safetensors', the weights of a whole model"),
        (("adapter_config.json", "model.gguf"), "'model.gguf', an adapter or a model of llama.cpp"),
        (("README.md", "x\x1b[31m"), r"it holds 'README.md', 'x\\x1b\[31m'; give a folder that PEFT"),
        ((), "it is empty; give a folder"),
    ],
)
def test_what_is_there_in_place_of_an_adapter_is_said(
    files: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")

    with pytest.raises(AdapterFileError, match=rf"is missing from .*/here: .*{said}"):
        find_files(folder, "adapter 'sql'")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a folder"),
        (_fifo, "a FIFO"),
        (_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_only_regular_files_are_read(
    make: Callable[[Path], None], kind: str, name: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).unlink()
    make(folder / name)

    for read in (lambda: read_files(folder, "adapter"), lambda: adapter_digest(folder)):
        with pytest.raises(AdapterFileError, match=f"'{name}' is {kind}, not a regular file"):
            read()


def test_files_are_read_through_the_links_of_a_cache(tmp_path: Path) -> None:
    folder, links = write_adapter(tmp_path / "blobs"), tmp_path / "snapshot"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)

    assert read_files(links, "adapter") == read_files(folder, "adapter")


def test_no_more_is_read_than_the_header_says_or_than_is_allowed(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    size = weights.stat().st_size

    with pytest.raises(AdapterTooLarge, match=rf"has {size} bytes, at most {size - 1} are read"):
        read_files(folder, "adapter", max_bytes=size - 1)
    os.truncate(weights, 1 << 40)  # sparse
    with pytest.raises(AdapterFileError, match=rf"\({1 << 40} bytes\) is corrupt .*says {size} bytes"):
        read_files(folder, "adapter")
    weights.write_bytes((1 << 39).to_bytes(8, "little") + b"{}")
    with pytest.raises(AdapterFileError, match=f"a header of {1 << 39} bytes"):
        read_files(folder, "adapter")
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(AdapterFileError, match="is a pointer of Git LFS, not the weights; run git lfs pull"):
        read_files(folder, "adapter")
    os.truncate(folder / "adapter_config.json", 1 << 40)
    with pytest.raises(AdapterTooLarge, match=r"adapter_config\.json has"):
        read_files(folder, "adapter")


def test_a_name_that_claims_a_million_million_shards_takes_no_memory(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    shard = folder / "adapter_model-1-of-1000000000000.safetensors"
    (folder / "adapter_model.safetensors").rename(shard)

    with pytest.raises(AdapterFileError, match=r"missing: \[2, 3, 4, 5, 6\] and more; copy"):
        find_files(folder, "adapter")

    for name in ("adapter_model-1-of-2", "adapter_model-01-of-2"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    shard.unlink()
    with pytest.raises(AdapterFileError, match=r"missing: \[2\]; copy"):
        find_files(folder, "adapter")
