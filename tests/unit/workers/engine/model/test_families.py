"""Every family against transformers and PEFT: logits by position, and mixed batches with adapters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from kernels.cpu.library import available_levels, use_level
from kernels.registry import build
from tests.unit.workers.engine.conftest import PAD_ID
from tests.unit.workers.engine.model.family_cases import CASES, VOCAB_SIZE, make_model
from tests.unit.workers.engine.peft_bases import save_base, train
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams
from workers.engine.core.sequence import SequenceState
from workers.engine.kv.kv_cache import KVCache
from workers.engine.lora import describe_base
from workers.engine.model.config import load_model_config
from workers.engine.model.decoder import Decoder
from workers.engine.model.layers.attention_backend import choose_attention
from workers.engine.model.layout import weight_shards
from workers.engine.model.weights import load_weights
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.step_builder import StepBuilder

pytestmark = pytest.mark.numeric

TOKEN_IDS = torch.randint(3, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(5))
CHUNKS = [37, 1, 1, 17, 1, 1, 1, 1, 1, 1, 1, 7]  # the first is longer than the windows
PROMPT_LENGTHS = [40, 5, 17, 33, 2, 26]
NUM_TOKENS = 12


_VOCABULARY = {"target_modules": r".*\.(up_proj|k_proj|embed_tokens)|lm_head"}
SPECIAL_ADAPTERS: dict[str, dict[str, Any]] = {
    "llama-biases": {"use_dora": True},  # its gain spares the biases
    "qwen2": {"use_dora": True},  # here too
    "olmo2": {"use_dora": True},  # before the norm of all heads
    "glm4": {"use_dora": True},  # of columns that are moved
    "phi3": {"use_dora": True},  # of modules that are fused
    "gemma": _VOCABULARY,
    "gemma2": _VOCABULARY,  # before the soft cap of the logits
    "granite": _VOCABULARY,  # scaled twice
    "gemma3": _VOCABULARY,  # scaled as the embedding is
}


@dataclass(frozen=True)
class Case:
    """A model as transformers has it in memory, and as it lies on disk with two adapters."""

    model: PreTrainedModel
    folder: Path
    adapters: dict[str, LoRARequest]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One family's checkpoint, an adapter on every linear module, and one that tries its own ways."""
    model, folder = make_model(request.param), tmp_path_factory.mktemp(request.param)
    save_base(model, folder / "base")
    adapters = {}
    special = SPECIAL_ADAPTERS.get(request.param, {})
    for number, options in enumerate(({"r": 4}, {"r": 7} | special), start=1):
        config = LoraConfig(lora_alpha=8, **{"target_modules": "all-linear"} | options)
        path = train(model, config, folder / f"adapter-{number}", seed=number)
        adapters[path.name] = LoRARequest(path.name, number, str(path))
    return Case(model, folder / "base", adapters)


@pytest.fixture(params=available_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled kernels, which read the cache in place, and plain torch, which gathers it."""
    with use_level(request.param):
        yield request.param


def teacher_forced_logits(folder: Path, dtype: torch.dtype) -> Tensor:  # [num_chunks, vocab_size]
    """Feed TOKEN_IDS in CHUNKS; return the logits after each."""
    config = load_model_config(folder)
    attention = choose_attention(build("cpu", dtype), 16)
    decoder = Decoder(
        config, load_weights(folder, config, dtype), max_model_len=128, adapters=None, attention=attention
    )
    builder = StepBuilder(
        block_size=16,
        num_kv_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        dtype=dtype,
        gathers_kv=attention.gathers,
        windows=config.windows,
    )
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=9,
        num_kv_heads=config.num_kv_heads,
        block_size=16,
        head_dim=config.head_dim,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    params = SamplingParams(temperature=0.0)
    sequence = SequenceState(
        "one", None, [], params, None, seed=0, max_total_tokens=99, stop_checker=None, arrival_time_s=0.0
    )
    sequence.block_table = [5, 2, 7, 1, 3]
    logits = []
    for chunk in CHUNKS:
        sequence.token_ids += TOKEN_IDS[sequence.num_tokens : sequence.num_tokens + chunk].tolist()
        built = builder.build(Schedule([ScheduledRows(sequence, chunk)], [], []))
        with torch.inference_mode():
            hidden = decoder.forward(built.forward, cache)
            sampling = builder.build_sampling(built.spans).sampling
            logits.append(decoder.logits(hidden, sampling.rows, sampling.segments)[0])
        sequence.num_computed_tokens += chunk
    return torch.stack(logits)


def oracle_logits(model: PreTrainedModel) -> Tensor:  # [num_chunks, vocab_size] float32
    """Feed TOKEN_IDS as generation would: the prompt, then one token after another."""
    ends = torch.tensor(CHUNKS).cumsum(0)
    with torch.inference_mode():
        out = model(TOKEN_IDS[None, : CHUNKS[0]], use_cache=True)
        logits = [out.logits[0, -1]]
        for token_id in TOKEN_IDS[CHUNKS[0] :]:
            out = model(token_id.view(1, 1), use_cache=True, past_key_values=out.past_key_values)
            logits.append(out.logits[0, -1])
    return torch.stack(logits).float()[ends - CHUNKS[0]]


@pytest.mark.usefixtures("level")
def test_float32_logits_equal_transformers(case: Case) -> None:
    logits = teacher_forced_logits(case.folder, torch.float32)

    torch.testing.assert_close(logits, oracle_logits(case.model), atol=1e-4, rtol=0)


def test_a_mixed_batch_of_two_adapters_and_the_base_equals_peft(case: Case) -> None:
    prompts, names = _mixed_work(case)
    engine = LLMEngine(EngineConfig(str(case.folder), enable_lora=True, max_loras=2, num_threads=1))

    tokens = _run(engine, case)
    engine.close()

    expected = _greedy(case, prompts, names)
    assert tokens == expected
    assert len({tuple(answer) for answer in expected}) == len(expected)


@pytest.mark.parametrize("case", ["mistral-sliding", "llama-dynamic", "gemma3", "gpt-oss"], indirect=True)
def test_chunks_preemption_and_shared_prefixes_change_no_token(case: Case) -> None:
    config = EngineConfig(str(case.folder), enable_lora=True, max_loras=2, num_threads=1)
    roomy = LLMEngine(config)
    tight = LLMEngine(
        replace(config, max_num_seqs=3, max_num_batched_tokens=11, max_model_len=64, num_kv_blocks=7)
    )

    expected = _run(roomy, case)
    first, again = _run(tight, case), _run(tight, case)
    roomy.close()
    tight.close()

    assert first == again == expected


def _mixed_work(case: Case) -> tuple[list[list[int]], list[str | None]]:
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]
    return prompts, [None, *case.adapters] * 2


def _run(engine: LLMEngine, case: Case) -> list[list[int]]:
    prompts, names = _mixed_work(case)
    outputs = engine.generate(
        prompts,
        SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
        lora_request=[None if name is None else case.adapters[name] for name in names],
    )
    return [output.outputs[0].token_ids for output in outputs]


def _greedy(case: Case, prompts: list[list[int]], names: list[str | None]) -> list[list[int]]:
    models: dict[str | None, Any] = {None: case.model}
    for name, adapter in case.adapters.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models[name] = PeftModel.from_pretrained(copy.deepcopy(case.model), adapter.lora_path).eval()
    return [_generate(models[name], prompt) for name, prompt in zip(names, prompts, strict=True)]


def _generate(model: PreTrainedModel | PeftModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=PAD_ID,
        )
    return out[0, len(prompt) :].tolist()


def test_the_shapes_for_adapters_are_those_of_the_model(case: Case) -> None:
    expected = {
        name: (module.in_features, module.out_features)
        for name, module in case.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }

    base = describe_base(case.folder)

    parameters = {name for name, _ in case.model.named_parameters()}
    assert set(base.parameters.values()) <= parameters
    shapes = {path: shape for path, shape in base.shapes.items() if path not in base.parameters}
    assert {path: (shape.in_features, shape.out_features) for path, shape in shapes.items()} == expected
    assert sorted(path for paths in base.layout.values() for path in paths) == sorted(base.shapes)


def test_every_tensor_of_the_checkpoint_has_a_shard_axis(case: Case) -> None:
    config = load_model_config(case.folder)

    with safe_open(case.folder / "model.safetensors", framework="pt") as file:
        assert set(weight_shards(config)) == set(file.keys())


@pytest.mark.parametrize("case", ["gemma3", "gpt-oss"], indirect=True)
@pytest.mark.usefixtures("level")
def test_bfloat16_is_no_further_from_float32_than_transformers_bfloat16(case: Case) -> None:
    exact = oracle_logits(case.model)
    theirs = oracle_logits(type(case.model).from_pretrained(case.folder, dtype=torch.bfloat16).eval())

    ours = teacher_forced_logits(case.folder, torch.bfloat16)

    assert (ours - exact).abs().mean() <= 2.0 * (theirs - exact).abs().mean()
