"""Checkpoints that are damaged, or of a kind that is not served, are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.unit.odd_files import ODD_FILES, make_odd_file
from workers.engine import EngineConfig, LLMEngine, SamplingParams
from workers.engine.core.errors import CheckpointError
from workers.engine.model.config import load_model_config

pytestmark = pytest.mark.numeric

Change = Callable[[Path], None]
PROMPT = [5, 6, 7, 8, 9]
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def load(folder: Path) -> LLMEngine:
    return LLMEngine(EngineConfig(model=str(folder), max_model_len=64, num_threads=1))


def set_config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def name_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{,"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "convert the checkpoint to safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"rubbish"), "cannot be opened"),
        (truncate, "cannot be opened: .*download the file again"),
        (name_a_missing_shard, "is missing, though the index names it"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
            "index.json is not JSON",
        ),
        (set_config(architectures=["GPT2LMHeadModel"]), r"architectures is \['GPT2LMHeadModel'\]"),
        (set_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (set_config(attention_bias=True), r"q_proj\.bias' is missing"),
        (set_config(mlp_bias=True), r"gate_proj\.bias' is missing"),
        (set_config(quantization_config={"quant_method": "exl2"}), "quantization_config is .*'exl2'"),
        (set_config(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "rope_type is 'longrope'"),
        (set_config(hidden_size=-8), "hidden_size: .*greater than or equal to 1"),
        (set_config(num_key_value_heads=3), "is not a multiple of num_key_value_heads"),
        (
            set_config(vocab_size=260),
            r"embed_tokens.weight' has shape \(259, 64\), config.json implies \(260, 64\)",
        ),
        (change_tensors(lambda tensors: tensors.pop("model.norm.weight")), "'model.norm.weight' is missing"),
        (
            change_tensors(lambda tensors: tensors.pop("lm_head.weight")),
            "'lm_head.weight' is missing, and tie_word_embeddings is false.*set it to true",
        ),
        (
            change_tensors(lambda tensors: tensors.update({"model.layers.0.extra": torch.ones(2)})),
            "tensors without a place in this model: 1 .model.layers.0.extra",
        ),
        (
            change_tensors(
                lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})
            ),
            "'model.norm.weight' has dtype torch.int8",
        ),
    ],
)
def test_damage_is_named(folder: Path, damage: Change, message: str) -> None:
    damage(folder)

    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "adapter_config.json", "model.safetensors"],
)
@pytest.mark.parametrize("make", ODD_FILES)
def test_what_is_no_file_is_named_and_never_waited_for(folder: Path, name: str, make: str) -> None:
    said = make_odd_file(folder / name, make)

    with pytest.raises(CheckpointError, match=rf"/{name} is {said}; put the file itself there, or take it"):
        load(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere' is not a folder"):
        load(tmp_path / "nowhere")


def test_a_sharded_checkpoint_gives_the_same_tokens(
    llama: LlamaForCausalLM, folder: Path, checkpoint: Path
) -> None:
    (folder / "model.safetensors").unlink()
    llama.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1

    sharded, whole = load(folder).generate(PROMPT, GREEDY), load(checkpoint).generate(PROMPT, GREEDY)

    assert sharded[0].outputs == whole[0].outputs


def test_a_tied_head_is_the_embedding(llama: LlamaForCausalLM, folder: Path) -> None:
    tied = LlamaForCausalLM(
        llama.config.__class__.from_dict({**llama.config.to_dict(), "tie_word_embeddings": True})
    )
    tied.eval().save_pretrained(folder)
    with torch.inference_mode():
        expected = tied.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=None,
            pad_token_id=2,
        )

    assert (
        load(folder).generate(PROMPT, GREEDY)[0].outputs[0].token_ids == expected[0, len(PROMPT) :].tolist()
    )


@pytest.mark.parametrize("generation", [{"eos_token_id": [7, 3, 7]}, {"eos_token_id": 0}, {}, None])
@pytest.mark.parametrize("config", [{"eos_token_id": 5}, {"eos_token_id": [5, 6]}, {}])
def test_the_file_that_decides_on_the_end_is_transformers(
    folder: Path, config: dict[str, Any], generation: dict[str, Any] | None
) -> None:
    set_config(**{"eos_token_id": None, **config})(folder)
    path = folder / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))

    theirs = LlamaForCausalLM.from_pretrained(folder).generation_config.eos_token_id

    listed = [] if theirs is None else theirs if isinstance(theirs, list) else [theirs]
    assert load_model_config(folder).eos_token_ids == tuple(dict.fromkeys(listed))


def test_an_answer_ends_with_the_token_of_the_generation_config_alone(folder: Path, checkpoint: Path) -> None:
    tokens = load(checkpoint).generate(PROMPT, GREEDY)[0].outputs[0].token_ids
    assert tokens.index(tokens[1]) < tokens.index(tokens[3])
    set_config(eos_token_id=tokens[1])(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokens[3]]}))

    completion = load(folder).generate(PROMPT, SamplingParams(max_tokens=8, temperature=0.0))[0].outputs[0]

    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert completion.token_ids == tokens[: tokens.index(tokens[3]) + 1]


@pytest.mark.parametrize("token_id", [259, -1, 2.0, "1", True])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_end_that_is_no_token_is_refused(folder: Path, file: str, token_id: object) -> None:
    (folder / "generation_config.json").unlink()
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | {"eos_token_id": [1, token_id]}))

    with pytest.raises(CheckpointError, match=rf"{file}: eos_token_id names {token_id!r}.* from 0 to 258"):
        load_model_config(folder)


def test_older_configs_keep_rope_theta_at_the_top(folder: Path, checkpoint: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0, "rope_scaling": None}))

    old, new = load(folder).generate(PROMPT, GREEDY), load(checkpoint).generate(PROMPT, GREEDY)

    assert old[0].outputs == new[0].outputs
