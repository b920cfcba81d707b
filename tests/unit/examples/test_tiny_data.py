"""The shipped base and adapters: right formats, bounded sizes, and right answers by transformers and PEFT."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.tiny.oracle import Answer, Oracle
from examples.tiny.recipe import ADAPTERS, ADAPTERS_DIR, BASE_DIR, BASE_NAME
from examples.tiny.tasks import TASKS, prompt, sample_words
from examples.tiny.tokenizer import build_tokenizer

NUM_WORDS = 200
MAX_BYTES = 6_000_000
# Engines differ in the last bits of a float32 logit, by about 1e-5: below such a lead no token can flip.
MIN_LOGIT_GAP = 0.1


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


def held_out_words(task: str) -> list[str]:
    return sample_words(task, "held_out", NUM_WORDS, seed=2026)


def num_right(task: str, answers: list[Answer]) -> int:
    expected = [TASKS[task].answer(word) for word in held_out_words(task)]
    return sum(answer.text == want for answer, want in zip(answers, expected, strict=True))


def load_json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.mark.parametrize("task", TASKS)
def test_each_adapter_answers_held_out_words_and_the_base_alone_none(oracle: Oracle, task: str) -> None:
    prompts = [prompt(word) for word in held_out_words(task)]

    tuned = oracle.answers(prompts, task)
    bare = oracle.answers(prompts, None)

    assert num_right(task, tuned) >= 0.99 * NUM_WORDS
    assert num_right(task, bare) == 0
    assert min(answer.min_logit_gap for answer in tuned + bare) > MIN_LOGIT_GAP


def test_the_base_alone_echoes_its_input(oracle: Oracle) -> None:
    words = held_out_words("upper")

    answers = oracle.answers([prompt(word) for word in words], None)

    assert [answer.text for answer in answers] == words


def test_every_task_has_an_adapter_and_every_adapter_a_task() -> None:
    assert {folder.name for folder in ADAPTERS_DIR.iterdir()} == set(TASKS) == set(ADAPTERS)
    assert len(TASKS) >= 8


@pytest.mark.parametrize("task", TASKS)
def test_each_adapter_is_as_peft_saves_it_and_as_the_recipe_says(task: str) -> None:
    folder, recipe = ADAPTERS_DIR / task, ADAPTERS[task]
    config = load_json(folder / "adapter_config.json")

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        ranks = {key: file.get_slice(key).get_shape()[0] for key in file.keys() if "lora_A" in key}  # noqa: SIM118
        assert all(key.startswith("base_model.model.model.layers.") for key in file.keys())  # noqa: SIM118
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert config["peft_type"] == LoraConfig.from_pretrained(str(folder)).peft_type == "LORA"
    assert config["base_model_name_or_path"] == BASE_NAME
    assert config["use_rslora"] == recipe.use_rslora
    assert set(ranks.values()) == {recipe.rank, *recipe.rank_pattern.values()}


def test_the_adapters_are_of_many_kinds() -> None:
    configs = [load_json(ADAPTERS_DIR / task / "adapter_config.json") for task in TASKS]

    assert {4, 16} <= {config["r"] for config in configs} <= set(range(4, 17))
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] and config["alpha_pattern"] for config in configs)
    assert any(config["layers_to_transform"] for config in configs)
    assert any(isinstance(config["target_modules"], str) for config in configs)
    assert len({str(config["target_modules"]) for config in configs}) >= 6


def test_the_base_loads_by_the_auto_classes_and_is_what_the_card_says() -> None:
    config = load_json(BASE_DIR / "config.json")
    model = AutoModelForCausalLM.from_pretrained(BASE_DIR)

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["_name_or_path"] == BASE_NAME
    assert 500_000 <= model.num_parameters() <= 1_500_000
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.head_dim >= 16
    assert model.config.max_position_embeddings >= 512
    assert [config[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")] == [0, 1, 2]


@pytest.mark.parametrize("text", [string.printable, "a  b ", "héllo, 日本 🙂", "lantern>"])
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)

    token_ids = tokenizer(text).input_ids

    assert token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == text


def test_the_tokenizer_on_disk_is_the_one_that_training_uses() -> None:
    assert load_json(BASE_DIR / "tokenizer.json") == json.loads(build_tokenizer().to_str())


def test_the_chat_template_renders_the_last_user_message_as_a_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first>"},
        {"role": "assistant", "content": "tsrif"},
        {"role": "user", "content": "lantern>"},
    ]

    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert rendered == "<s>lantern>"
    assert tokenizer(rendered, add_special_tokens=False).input_ids == tokenizer("lantern>").input_ids


def test_all_that_ships_weighs_a_few_megabytes() -> None:
    weights = [*BASE_DIR.rglob("*"), *ADAPTERS_DIR.rglob("*")]

    assert sum(path.stat().st_size for path in weights if path.is_file()) <= MAX_BYTES
