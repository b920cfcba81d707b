"""All files of a tokenizer count, as they do for transformers, or they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers
from transformers import AutoTokenizer, StopStringCriteria

from tests.unit.workers.engine.conftest import save_tokenizer
from workers.engine.core.errors import CheckpointError
from workers.engine.text.tokenizer import Tokenizer

SIZE = 259  # tokens of `save_tokenizer`
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "image_token", "video_token")
TEMPLATE = "".join(f"{{{{ {name} }}}}|" for name in NAMES) + "{{ messages[0].content }}"
TEXTS = ["<|im_start|>hi<|im_end|> there", "<s>a</s> <pad>!<tool><image>", "a <|endoftext|> <video>"]
Files = dict[str, Any]


def flags(content: str, **changes: Any) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **plain, **changes}


SPECIAL = {str(number): flags(content) for number, content in enumerate(("<s>", "</s>", "<pad>"))}


def write(folder: Path, files: Files, tokens: list[AddedToken], model: dict[str, Any]) -> Path:
    """Write a byte-level tokenizer with more added tokens, and files beside it."""
    save_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(tokens)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **model}))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


IM_END = AddedToken("<|im_end|>", special=False, normalized=False)
CASES: dict[str, tuple[Files, list[AddedToken], dict[str, Any]]] = {
    "a token that tokenizer.json lacks": (
        {
            "tokenizer_config": {
                "added_tokens_decoder": {
                    **SPECIAL,
                    str(SIZE): flags("<|im_start|>"),
                    str(SIZE + 1): flags("<tool>", special=False),
                }
            }
        },
        [],
        {},
    ),
    "other flags than tokenizer.json's": (
        {
            "tokenizer_config": {
                "added_tokens_decoder": {**SPECIAL, str(SIZE): flags("<|im_end|>", rstrip=True)}
            }
        },
        [IM_END],
        {},
    ),
    "names in the older file alone": (
        {"tokenizer_config": {}, "special_tokens_map": {"bos_token": "<s>", "eos_token": flags("</s>")}},
        [],
        {},
    ),
    "names without a tokenizer_config": ({"special_tokens_map": {"bos_token": "<s>"}}, [], {}),
    "the older file goes first": (
        {
            "tokenizer_config": {"bos_token": "</s>", "pad_token": "<pad>", "image_token": "<pad>"},
            "special_tokens_map": {"bos_token": "<s>", "pad_token": None, "image_token": "<image>"},
        },
        [],
        {},
    ),
    "and is not read beside added_tokens_decoder": (
        {
            "tokenizer_config": {"bos_token": "</s>", "added_tokens_decoder": SPECIAL},
            "special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"},
            "added_tokens": {"<tool>": SIZE},
        },
        [],
        {},
    ),
    "added_tokens.json": (
        {
            "tokenizer_config": {"eos_token": "<|im_end|>"},
            "added_tokens": {"<|im_end|>": SIZE, "<tool>": SIZE + 1, "<s>": 0},
        },
        [],
        {},
    ),
    "a name makes a token special": (
        {"tokenizer_config": {"eos_token": "<|im_end|>"}},
        [IM_END, AddedToken("<tool>", special=False)],
        {},
    ),
    "but not one that added_tokens_decoder leaves out": (
        {"tokenizer_config": {"eos_token": "<|im_end|>", "added_tokens_decoder": SPECIAL}},
        [IM_END],
        {},
    ),
    "a name of a plain word": ({"tokenizer_config": {"eos_token": "a", "pad_token": "<new>"}}, [], {}),
    "tokens without names": (
        {
            "tokenizer_config": {
                "additional_special_tokens": ["<|im_start|>", flags("<tool>", __type="AddedToken")]
            }
        },
        [],
        {},
    ),
    "a token told of twice, with other flags": (
        {
            "tokenizer_config": {"additional_special_tokens": ["<|im_end|>"]},
            "special_tokens_map": {"eos_token": flags("<|im_end|>", lstrip=True, rstrip=True)},
        },
        [],
        {},
    ),
    "a model's own names": (
        {
            "tokenizer_config": {
                "image_token": "<image>",
                "extra_special_tokens": {"video_token": "<video>"},
                "additional_special_tokens": ["<tool>"],
            }
        },
        [],
        {},
    ),
    "names of the class": ({"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}, [], {}),
    "names of the model's class": ({"tokenizer_config": {}}, [], {"model_type": "qwen3"}),
    "a class that makes all names special": (
        {"tokenizer_config": {"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2TokenizerFast"}},
        [IM_END],
        {"model_type": "qwen3"},
    ),
    "special tokens split as text": ({"tokenizer_config": {"split_special_tokens": True}}, [IM_END], {}),
    "what the tokenizer adds is tokenizer.json's to say": (
        {"tokenizer_config": {"add_bos_token": False, "add_eos_token": True, "eos_token": "</s>"}},
        [],
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_text_becomes_the_tokens_of_transformers_and_they_its_text(case: str, tmp_path: Path) -> None:
    folder = write(tmp_path, *CASES[case])

    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)

    everything = list(range(len(theirs)))
    assert ours.num_ids == len(theirs)
    assert [ours.encode(text) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
    for skips in (True, False):
        text = theirs.decode(everything, skip_special_tokens=skips)
        assert ours.decode(everything, skip_special_tokens=skips) == text
        detokenizer = ours.detokenizer(skip_special_tokens=skips)
        pieces = "".join(detokenizer.push(token_id) for token_id in everything)
        assert text.startswith(pieces.removesuffix("\ufffd"))
    messages = [{"role": "user", "content": "hi"}]
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours.encode_messages(messages) == (prompt, theirs(prompt, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("prefix", [True, False, None])
def test_a_llama_tokenizer_splits_text_as_its_config_says(
    legacy: bool | None, prefix: bool | None, tmp_path: Path
) -> None:
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"hi[]",
        "\u2581h",
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[("\u2581", "h")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizerFast", "legacy": legacy, "add_prefix_space": prefix}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)

    for text in ("hi é", "<s>[hi] hi</s>hi", " hi", "</s> hi"):
        token_ids = theirs(text)["input_ids"]
        assert ours.encode(text) == token_ids
        assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True)
    assert ours.encode("hi") == tokenizers.Tokenizer.from_str(ours.source).encode("hi").ids


@pytest.mark.parametrize("case", ["a token that tokenizer.json lacks", "a name makes a token special"])
def test_other_libraries_get_the_merged_tokenizer(case: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, *CASES[case]))

    merged = tokenizers.Tokenizer.from_str(tokenizer.source)

    assert [merged.encode(text).ids for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert merged.decode(list(range(265))) == tokenizer.decode(list(range(265)))


def test_a_tokenizer_json_to_which_nothing_is_added_is_opened_where_it_lies(tmp_path: Path) -> None:
    folder = write(tmp_path, {"tokenizer_config": {"bos_token": "<s>"}}, [IM_END], {})

    assert Tokenizer.from_folder(folder).source == str(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config": {"added_tokens_decoder": {str(SIZE + 4): flags("<tool>")}}},
            f"'<tool>' has id {SIZE + 4} in one file, and {SIZE + 1} by the others",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"7": flags("<|im_end|>")}}},
            f"'<|im_end|>' has id 7 in one file, and {SIZE} by the others",
        ),
        (
            {"tokenizer_config": {}, "added_tokens": {"<image>": 1}},
            f"'<image>' has id 1 in one file, and {SIZE + 1} by the others",
        ),
        (
            {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": SPECIAL}},
            "has the token '<|im_end|>', and tokenizer_config.json's added_tokens_decoder has not",
        ),
        ({"tokenizer_config": {"fast_tokenizer_files": ["tokenizer.4.0.json"]}}, "fast_tokenizer_files is"),
        ({"tokenizer_config": {"added_tokens_decoder": {"259": "<tool>"}}}, "special tokens cannot be read"),
        ({"tokenizer_config": {"bos_token": 1}}, "special tokens cannot be read: .*1 is no token"),
        ({"tokenizer_config": {"tokenizer_class": "x"}, "special_tokens_map": []}, "holds no JSON object"),
    ],
)
def test_files_that_disagree_are_refused(files: Files, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, files, [IM_END], {})

    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"clean_up_tokenization_spaces": True}, "clean_up_tokenization_spaces is true"),
        ({"tokenizer_class": "LlamaTokenizer"}, "LlamaTokenizer, which splits text in its own way"),
    ],
)
def test_what_else_would_change_the_text_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    words = models.WordLevel(vocab={"a": 0}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_a_token_whose_id_tokenizer_json_leaves_free_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {}, [], {}) / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"].append(flags("<tool>", id=300))
    path.write_text(json.dumps(values))

    with pytest.raises(CheckpointError, match="'<tool>' has id 300 in one file, and 259 by the others"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("stops", "expected", "stop"),
    [
        (["<|eot|>"], "é there", "<|eot|>"),
        (["e<|eot|>"], "é ther", "e<|eot|>"),
        (["<|eot|>!"], "é there", "<|eot|>!"),
        (["<tool>", "never"], "é ", "<tool>"),
        (["<tool>th"], "é ", "<tool>th"),
        (["<|eot|>", "her"], "é t", "her"),
        (["ere!", "<|eot|>!?"], "é th", "ere!"),
    ],
)
@pytest.mark.parametrize("keeps", [False, True])
def test_a_stop_string_may_name_tokens_that_the_text_leaves_out(
    stops: list[str], expected: str, stop: str, keeps: bool, tmp_path: Path
) -> None:
    tokens = [AddedToken(content, special=True) for content in ("<|eot|>", "<tool>")]
    folder = write(tmp_path, {}, tokens, {})
    tokenizer, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    token_ids = tokenizer.encode("é <tool>there<|eot|>!?")
    checker = tokenizer.stop_checker(stops, keeps_stop=keeps)
    criteria, told = StopStringCriteria(theirs, stops), 0

    for place in range(len(token_ids)):
        found = checker.push(token_ids[place])
        if stop != "ere!":  # transformers has no text without special tokens to look in
            assert bool(criteria(torch.tensor([token_ids[: place + 1]]), None)) == (found is not None)
        if found is not None:
            break
        assert checker.num_certain_chars >= told
        told = checker.num_certain_chars
        assert expected.startswith(checker.text[:told]) or keeps

    assert (found, checker.text) == (stop, expected + stop if keeps else expected)
