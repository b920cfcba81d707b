"""Defaults of a checkpoint's makers: which file has them, and what they make of the next token's odds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.unit.workers.engine.sampling.chosen import sample
from workers.engine import SamplingParams
from workers.engine.core.errors import CheckpointError
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.engine.core.sequence import SequenceState
from workers.engine.model.generation_config import read_sampling_defaults
from workers.engine.sampling.sampling_input import sampling_input
from workers.engine.sampling.token_rules import TokenRules

pytestmark = pytest.mark.numeric

NUM_DRAWS = 500
VOCAB_SIZE = 60
PROMPT = [4, 9, 9, 31]
WARPERS = {  # in the order in which the engine applies them
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "min_p": MinPLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
}


def write(folder: Path, values: Mapping[str, object], name: str = "generation_config.json") -> Path:
    (folder / name).write_text(json.dumps(dict(values)))
    return folder


def odds(logits: Tensor, folder: Path) -> Tensor:  # [vocab_size], how often each token comes in NUM_DRAWS
    """Draw the token after the prompt with uniforms that cover [0, 1) evenly, all parameters left unset."""
    params = SamplingParams().effective(read_sampling_defaults(folder))
    sequence = SequenceState(
        "one", None, PROMPT, params, None, seed=0, max_total_tokens=9, stop_checker=None, arrival_time_s=0.0,
        rules=TokenRules(params, PROMPT, end_token_ids=[], bad_words=None),
    )  # fmt: skip
    rows = torch.arange(NUM_DRAWS)
    asked = sampling_input([sequence] * NUM_DRAWS, rows, VOCAB_SIZE, segments=None, prompts=())
    uniforms = (rows + 0.5).double() / NUM_DRAWS
    output = sample(logits.repeat(NUM_DRAWS, 1), dataclasses.replace(asked, uniforms=uniforms))
    return torch.bincount(torch.tensor(output.token_ids), minlength=VOCAB_SIZE)


@pytest.mark.parametrize(
    "defaults",
    [
        {"temperature": 0.6},
        {"temperature": 2.5},
        {"top_k": 7},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"repetition_penalty": 1.6},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    ],
    ids=lambda defaults: "-".join(defaults),
)
def test_the_defaults_make_of_the_logits_what_transformers_processors_make_of_them(
    defaults: dict[str, float], tmp_path: Path
) -> None:
    logits = 2.0 * torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    processors = LogitsProcessorList(
        [make(defaults[name]) for name, make in WARPERS.items() if name in defaults]
    )
    expected = processors(torch.tensor([PROMPT]), logits.clone()).double().softmax(dim=-1)[0]

    counts = odds(logits, write(tmp_path, defaults))

    assert (counts[expected == 0] == 0).all()
    assert (counts - NUM_DRAWS * expected).abs().max() < 1.01  # an interval holds so many points, or one more


def test_what_is_null_or_not_there_is_as_if_the_file_said_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"repetition_penalty": 1.2}, "config.json")
    unused = {"eos_token_id": 2, "do_sample": False, "max_new_tokens": 7}
    write(tmp_path, {"top_k": None, "top_p": 0.8, **unused})

    assert read_sampling_defaults(tmp_path) == SamplingDefaults(top_p=0.8)


def test_config_json_has_the_defaults_of_a_folder_without_the_other_file(tmp_path: Path) -> None:
    write(tmp_path, {"repetition_penalty": 1.2, "top_k": 5}, "config.json")

    assert read_sampling_defaults(tmp_path) == SamplingDefaults(top_k=5, repetition_penalty=1.2)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("repetition_penalty", 0, "repetition_penalty is 0; give a number between 0.01 and 100.0"),
        ("temperature", "0.7", "temperature is '0.7'; give a finite number"),
        ("top_k", 20.5, "top_k is 20.5; give an integer"),
        ("top_p", 0, "top_p is 0; give a number in (0, 1]"),
        ("min_p", True, "min_p is True; give a finite number"),
    ],
)
def test_a_default_that_no_request_could_ask_for_is_refused_with_its_file_and_two_remedies(
    name: str, value: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_sampling_defaults(write(tmp_path, {name: value}))

    assert f"{tmp_path / 'generation_config.json'}: {said}" in str(refused.value)
    assert "or set generation_config (LORAYARD_GENERATION_CONFIG) to 'none'" in str(refused.value)


def test_what_transformers_obeys_and_the_engine_does_not_is_told_by_name(tmp_path: Path) -> None:
    harmless = {"num_beams": 1, "typical_p": 1.0, "suppress_tokens": [], "top_k": 5, "sequence_bias": None}
    write(tmp_path, {"no_repeat_ngram_size": 3, **harmless})

    with capture_logs() as logged:
        read_sampling_defaults(tmp_path)

    assert [(one["event"], one["parameters"]) for one in logged] == [
        ("generation_config.not_applied", ["no_repeat_ngram_size"])
    ]
