"""Trainers write one base in many ways; another published base is refused all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.engine.lora.files.base_names import BaseMatch, base_name, compare_base, same_checkpoint

SERVED = "Qwen/Qwen2.5-0.5B-Instruct"


def compared(trained_on: str, *names: str, parent: str = "", is_named: bool = True) -> BaseMatch:
    return compare_base(trained_on, names=names, parent=parent, is_named=is_named)


@pytest.mark.parametrize(
    "trained_on",
    [
        "Qwen/Qwen2.5-0.5B-Instruct",
        "qwen2.5-0.5b-instruct",
        "unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit",
        "unsloth/qwen2.5-0.5b-instruct-unsloth-bnb-4bit",
        "someone/Qwen2.5-0.5B-Instruct-GPTQ-Int4",
        "mlx-community/Qwen2.5-0.5B-Instruct-4bit",
        "someone/Qwen2.5-0.5B-Instruct-MXFP4",
        "neuralmagic/Qwen2.5-0.5B-Instruct-quantized.w8a8",
        "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/tree/main",
        "/home/user/.cache/modelscope/hub/models/Qwen/Qwen2___5-0___5B-Instruct",
        "/mnt/modelscope/hub/Qwen/Qwen2___5-0___5B-Instruct/",
        "/models/Qwen--Qwen2.5-0.5B-Instruct/snapshots/master",
        "/c/hub/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/7ae557604adf67be50417f59c2c2f167def9a775",
        "C:\\hub\\models--Qwen--Qwen2.5-0.5B-Instruct\\snapshots\\7ae557",
        "D:\\models\\Qwen2_5-0_5B-Instruct\\",
    ],
)
@pytest.mark.parametrize("served", [SERVED, "Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct-AWQ"])
def test_one_model_has_many_names(trained_on: str, served: str) -> None:
    assert compared(trained_on, served) is BaseMatch.SAME


@pytest.mark.parametrize(
    ("trained_on", "served"),
    [
        ("Qwen/Qwen2.5-0.5B", SERVED),
        ("unsloth/Qwen2.5-0.5B-bnb-4bit", SERVED),
        ("/data/Qwen2.5-0.5B", SERVED),  # a folder with a published model's whole name
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("/models/Meta-Llama-3-8B-Instruct", "/models/Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.3"),
        ("someone/support-bot", SERVED),  # another's fine-tune
    ],
)
def test_another_published_model_is_another(trained_on: str, served: str) -> None:
    assert compared(trained_on, served) is BaseMatch.OTHER
    assert compared(trained_on, "/srv/base", is_named=False) is BaseMatch.UNKNOWN


@pytest.mark.parametrize(
    "trained_on",
    [
        "",
        "/workspace/model",
        "./out",
        "outputs/sft",
        "me/checkpoint-500",
        "/w/qwen2.5-0.5b-sft",
        "my-llama",
        "/",
    ],
)
def test_a_folder_of_ones_own_tells_nothing(trained_on: str) -> None:
    assert compared(trained_on, SERVED) is BaseMatch.UNKNOWN


def test_a_fine_tune_takes_its_own_adapters_and_those_of_its_parent() -> None:
    for own in ("me/support-bot", "/home/me/out/support-bot", "/srv/support-bot/"):
        assert compared(own, "support-bot", parent=SERVED) is BaseMatch.SAME
    assert compared(SERVED, "support-bot", parent=SERVED) is BaseMatch.SAME
    # A published name of its own says that it is not its parent.
    assert compared("Qwen/Qwen2.5-0.5B", SERVED, parent="Qwen/Qwen2.5-0.5B") is BaseMatch.PARENT
    assert compared("someone/other", "support-bot", parent=SERVED) is BaseMatch.OTHER


def test_what_anyone_calls_a_folder_is_no_name() -> None:
    assert compared("/workspace/model", "model", is_named=False) is BaseMatch.UNKNOWN
    assert compared("/workspace/model", "model") is BaseMatch.SAME  # its owner said that it is called so


@pytest.mark.parametrize("folder", ["{home}/models/base", "{home}/link", "models/base", "models/base/"])
@pytest.mark.parametrize(
    ("trained_on", "same"),
    [
        ("{home}/models/base", True),
        ("{home}/models/base//", True),
        ("{home}/models/../models/base", True),
        ("{home}/link", True),
        ("{home}/link/", True),
        ("models/base", True),
        ("./models/base/", True),
        ("link", True),
        ("base", True),
        ("../models/base", True),  # as seen from another folder
        ("{home}/elsewhere/base", False),
        ("/models/base", False),
        ("{home}/models", False),
        ("models", False),
        ("elsewhere/base", False),
        ("..", False),
        ("base\0", False),
        ("base\ud800", False),
        ("b" * 5000, False),
        ("", False),
    ],
)
def test_a_path_that_leads_to_the_checkpoint_is_the_checkpoint(
    folder: str, trained_on: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)

    assert same_checkpoint(trained_on.format(home=tmp_path), folder.format(home=tmp_path)) is same
    assert not same_checkpoint(trained_on, "")


def test_a_hub_cache_folder_gives_the_hubs_name() -> None:
    assert base_name("/c/hub/models--meta-llama--Llama-3.1-8B/snapshots/abc") == "meta-llama/Llama-3.1-8B"
