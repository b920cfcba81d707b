"""Which tensors a checkpoint's folder means: what transformers loads, or none with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.unit.workers.engine.peft_bases import SHAPE
from workers.engine.core.errors import CheckpointError
from workers.engine.lora import describe_base
from workers.engine.lora.files.base import HEAD as HEAD_MODULE
from workers.engine.lora.files.vocabulary import _is_the_bases
from workers.engine.model.checkpoint import INDEX_FILE, SINGLE_FILE
from workers.engine.model.config import load_model_config
from workers.engine.model.modules import EMBEDDING, HEAD
from workers.engine.model.weights import DecoderWeights, load_weights

Tensors = dict[str, torch.Tensor]
NORM = "model.norm.weight"


def make(*, tied: bool, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied and an untied model, and the untied one in shards."""
    folder = tmp_path_factory.mktemp("saved")
    for name, tied in (("tied", True), ("untied", False)):
        make(tied=tied, seed=1).save_pretrained(folder / name)
    make(tied=False, seed=1).save_pretrained(folder / "shards", max_shard_size="40KB")
    return folder


def copy(saved: Path, name: str, folder: Path) -> Path:
    return Path(shutil.copytree(saved / name, folder / name))


def change(folder: Path, edit: Callable[[Tensors], object], file: str = SINGLE_FILE) -> None:
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def load(folder: Path) -> DecoderWeights:
    return load_weights(folder, load_model_config(folder), torch.float32)


def assert_as_transformers(folder: Path) -> DecoderWeights:
    weights, theirs = load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(weights.embedding, theirs.model.embed_tokens.weight.data, rtol=0, atol=0)
    torch.testing.assert_close(weights.head.weight, theirs.lm_head.weight.data, rtol=0, atol=0)
    torch.testing.assert_close(weights.final_norm, theirs.model.norm.weight.data, rtol=0, atol=0)
    for ours, layer in zip(weights.layers, theirs.model.layers, strict=True):
        norm = layer.input_layernorm.weight.data
        torch.testing.assert_close(ours.pre_attention_norm, norm, rtol=0, atol=0)
    return weights


def test_a_tied_config_with_another_head_in_the_file_is_not_tied(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, "tied", tmp_path)
    change(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 0.1}))

    weights, base = assert_as_transformers(folder), describe_base(folder)

    assert not torch.equal(weights.head.weight, weights.embedding)
    assert base.vocabulary is not None
    assert not base.vocabulary.is_tied


def test_a_copy_of_the_embedding_as_the_head_changes_nothing(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, "tied", tmp_path)
    change(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].double().half().float()}))
    change(folder, lambda tensors: tensors.update({EMBEDDING: tensors[HEAD].half()}))

    weights = assert_as_transformers(folder)

    assert weights.head.weight.data_ptr() == weights.embedding.data_ptr()


def test_a_tied_model_may_lie_in_the_file_as_its_head(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, "tied", tmp_path)
    change(folder, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))

    weights, vocabulary = assert_as_transformers(folder), describe_base(folder).vocabulary

    assert vocabulary is not None
    assert vocabulary.is_tied
    assert _is_the_bases(HEAD_MODULE, weights.embedding, vocabulary, "an adapter")


@pytest.mark.parametrize("keeps_shards", [True, False])
def test_one_file_goes_before_an_index_and_its_shards(
    saved: Path, tmp_path: Path, keeps_shards: bool
) -> None:
    folder = copy(saved, "shards", tmp_path)
    shards = {path: path.read_bytes() for path in folder.glob("model-*.safetensors")}
    make(tied=False, seed=2).save_pretrained(folder)  # which removes the shards, and leaves the index
    if keeps_shards:
        for path, content in shards.items():
            path.write_bytes(content)

    assert (folder / INDEX_FILE).is_file()
    assert_as_transformers(folder)


def test_a_tensor_is_where_a_shard_has_it_whatever_the_index_says(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, "shards", tmp_path)
    index = json.loads((folder / INDEX_FILE).read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    index["weight_map"] |= {NORM: first, "model.layers.0.input_layernorm.weight": last}
    del index["weight_map"][HEAD]
    (folder / INDEX_FILE).write_text(json.dumps(index))

    assert_as_transformers(folder)


def test_a_tensor_in_two_shards_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, "shards", tmp_path)
    place = json.loads((folder / INDEX_FILE).read_text())["weight_map"][NORM]
    other = next(path.name for path in sorted(folder.glob("model-*")) if path.name != place)
    change(folder, lambda tensors: tensors.update({NORM: torch.ones(32)}), other)

    with pytest.raises(CheckpointError, match=r"both hold 'model.norm.weight'.*remove the shards"):
        load(folder)


@pytest.mark.parametrize("name", ["../{}", "/{}", "sub/../{}"])
def test_a_shard_outside_the_folder_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    folder = copy(saved, "shards", tmp_path)
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"][NORM] = name.format(index["weight_map"][NORM])
    (folder / INDEX_FILE).write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"names '.*safetensors', outside its folder"):
        load(folder)


def test_what_else_transformers_would_read_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, "untied", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "merged.safetensors"}))
    with pytest.raises(CheckpointError, match=r"transformers_weights is 'merged.safetensors'"):
        load(folder)

    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds adapter_config.json beside config.json"):
        load(folder)
