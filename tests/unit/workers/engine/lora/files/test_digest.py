from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tests.unit.workers.engine.lora.adapter_writer import write_adapter
from workers.engine.core.errors import AdapterNotFound
from workers.engine.lora.files.adapter_files import read_files
from workers.engine.lora.files.digest import adapter_digest, digest_of


def test_it_covers_names_sizes_and_bytes_of_configuration_and_weights(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    expected = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (folder / name).read_bytes()
        expected.update(f"{name}\0{len(content)}\0".encode() + content)

    assert adapter_digest(folder) == f"sha256:{expected.hexdigest()}"


def test_files_read_at_once_have_the_digest_of_their_folder(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")

    assert digest_of(read_files(folder, "adapter")) == adapter_digest(folder)


def test_behaviour_30_copies_agree_and_unrelated_files_do_not_count(tmp_path: Path) -> None:
    one, other = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "other")
    (other / "README.md").write_text("about")

    assert adapter_digest(one) == adapter_digest(str(other))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_behaviour_30_one_changed_byte_of_any_file_changes_it(name: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    before = adapter_digest(folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)

    assert adapter_digest(folder) != before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="nowhere"):
        adapter_digest(tmp_path / "nowhere")


def test_its_modules_need_only_the_standard_library() -> None:
    source = "\n".join(
        (Path(__file__).parents[6] / "workers" / "engine" / "lora" / "files" / name).read_text()
        for name in ("digest.py", "adapter_files.py")
    )
    imported = {
        line.split()[1].partition(".")[0]
        for line in source.splitlines()
        if line.startswith(("import ", "from "))
    }

    assert imported - sys.stdlib_module_names == {"workers"}
