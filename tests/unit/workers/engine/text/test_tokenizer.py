"""The checkpoint's own tokenizer and chat template, the template in a sandbox."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.unit.odd_files import ODD_FILES, make_odd_file
from workers.engine.core.errors import CheckpointError, InvalidPrompt
from workers.engine.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "hi"}


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer's files without a chat template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, tmp_path / name)
    return tmp_path


def test_special_tokens_are_added_to_text_and_left_to_the_template(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_folder(checkpoint)

    text, token_ids = tokenizer.encode_messages([USER])

    assert text == "<s>[user] hi\n[assistant] "
    assert token_ids == tokenizer.encode("[user] hi\n[assistant] ")
    assert tokenizer.decode(token_ids) == "[user] hi\n[assistant] "


@pytest.mark.parametrize("as_list", [False, True])
def test_a_template_may_stand_in_the_tokenizer_s_config(folder: Path, as_list: bool) -> None:
    source = "{{ bos_token }}{{ messages[-1]['content'] | upper }}{{ messages | tojson }}"
    template = [{"name": "default", "template": source}] if as_list else source
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": template}))

    text, _ = Tokenizer.from_folder(folder).encode_messages([{"role": "user", "content": "<é>"}])

    assert text == '<s><É>[{"role": "user", "content": "<é>"}]'


def test_without_a_template_messages_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidPrompt, match="no chat template; send a prompt"):
        Tokenizer.from_folder(folder).encode_messages([USER])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"\(chat_template.jinja\) was stopped: .* unsafe"),
        ("{{ messages.append(1) }}", r"\(chat_template.jinja\) was stopped: .*append.* unsafe"),
        ("{{ raise_exception('no') }}", "refused the messages: no"),
        ("{{ messages[0]['content'] + 1 }}", "refused the messages: can only concatenate"),
        ("{{ messages[7].content.text }}", "refused the messages: .* has no element 7"),
        ("{% for i in range(10000000) %}x{% endfor %}", "refused the messages: Range too big"),
    ],
)
def test_a_template_that_misbehaves_refuses_the_messages(folder: Path, source: str, reason: str) -> None:
    (folder / "chat_template.jinja").write_text(source)

    with pytest.raises(InvalidPrompt, match=rf"chat template {reason}"):
        Tokenizer.from_folder(folder).encode_messages([USER])


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
    ],
)
@pytest.mark.parametrize("make", ODD_FILES)
def test_what_is_no_file_is_named_and_never_waited_for(folder: Path, name: str, make: str) -> None:
    said = make_odd_file(folder / name, make)

    with pytest.raises(CheckpointError, match=rf"/{name} is {said}; put the file itself there, or take it"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer.json", None, "is missing"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "holds no JSON object"),
        ("chat_template.jinja", "a\n{% if %}", "chat template, line 2"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, content: str | None, message: str) -> None:
    path = folder / name
    path.unlink() if content is None else path.write_text(content)

    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(folder)
