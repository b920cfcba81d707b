"""What an adapter's owner is told although the adapter is served."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.odd_files import ODD_FILES, make_odd_file
from tests.unit.workers.engine.lora.adapter_writer import BASE, config_of, write_adapter
from workers.engine.core.errors import AdapterBaseMismatch, AdapterFileError
from workers.engine.lora.files.chat_files import read_chat_files
from workers.engine.lora.files.validate import validate_adapter

TOKENIZER = {"chat_template": "{{ messages }}", "eos_token": {"content": "</s>"}}


def warnings_of(folder: Path, base: Any = BASE, **options: Any) -> tuple[str, ...]:
    return validate_adapter(folder, base=base, max_rank=16, name="sql", **options).warnings


@pytest.fixture
def base_on_disk(tmp_path: Path) -> Any:
    """The tiny base with a folder, whose chats and ends are known."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    return replace(BASE, chats=read_chat_files(folder))


@pytest.mark.parametrize(
    ("trained_on", "said"),
    [
        (
            "/workspace/model",
            "it calls its base '/workspace/model'; whether that is 'tiny-base' cannot be known",
        ),
        (None, "it does not name its base; whether that is 'tiny-base' cannot be known"),
        ("me/tiny-base", None),
    ],
)
def test_a_base_that_cannot_be_known_is_a_warning(
    trained_on: str | None, said: str | None, tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config_of(base_model_name_or_path=trained_on))

    found = warnings_of(tmp_path)

    assert [one.startswith(said or "nothing") for one in found] == [True] * (said is not None)


def test_an_adapter_of_the_parent_is_a_warning_where_the_base_has_a_published_name_of_its_own(
    tmp_path: Path,
) -> None:
    base = replace(BASE, name="Qwen/Qwen2.5-0.5B-Instruct", parent="Qwen/Qwen2.5-0.5B")
    write_adapter(tmp_path, config=config_of(base_model_name_or_path="Qwen/Qwen2.5-0.5B"))

    (said,) = warnings_of(tmp_path, base)

    assert "'Qwen/Qwen2.5-0.5B', which this base's config.json says that it was made from" in said


def test_what_the_caller_says_of_the_base_stands_above_the_file(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(base_model_name_or_path="someone/other"))

    assert warnings_of(tmp_path, base_name="someone/tiny-base") == ()
    assert warnings_of(tmp_path, base_name="") == ()
    with pytest.raises(AdapterBaseMismatch, match=r"--base-name of `lorayard adapters add`"):
        warnings_of(tmp_path)
    with pytest.raises(AdapterBaseMismatch, match="trained on 'a/b'"):
        warnings_of(tmp_path, base_name="a/b")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config.json": json.dumps(TOKENIZER)}, None),
        ({"tokenizer_config.json": '{"eos_token": "</s>"}', "chat_template.jinja": "{{ messages }}"}, None),
        ({"generation_config.json": '{"eos_token_id": 3}'}, None),
        ({"chat_template.jinja": "other"}, "it ships a chat template of its own, which is not used"),
        (
            {"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "other"}]}'},
            "it ships a chat template",
        ),
        (
            {"tokenizer_config.json": '{"eos_token": "<|im_end|>"}'},
            "ends with '<|im_end|>', the base's with '</s>'",
        ),
        (
            {"generation_config.json": '{"eos_token_id": [2, 7]}'},
            "ends with ids [2, 7], the base's with [2, 3]",
        ),
        ({"tokenizer_config.json": "{"}, "it ships a tokenizer_config.json that cannot be read"),
        ({"tokenizer_config.json": "[" * 100_000}, "it ships a tokenizer_config.json that cannot be read"),
    ],
)
def test_a_chat_template_or_end_that_differs_from_the_bases_is_a_warning(
    files: dict[str, str], said: str | None, base_on_disk: Any, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    for name, text in files.items():
        (folder / name).write_text(text)

    found = warnings_of(folder, base_on_disk)

    assert [said in one for one in found if said] == [True] * (said is not None)
    assert len(found) == (said is not None)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("make", ODD_FILES)
def test_a_chat_file_that_is_none_is_refused_by_name(name: str, make: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    said = make_odd_file(folder / name, make)

    with pytest.raises(AdapterFileError, match=rf"adapter 'sql' .*{re.escape(name)} is {said}; put the file"):
        warnings_of(folder)


@pytest.mark.parametrize("make", ODD_FILES)
def test_what_is_never_read_beside_an_adapter_may_be_anything(make: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    make_odd_file(folder / "README.md", make)

    assert warnings_of(folder) == ()
