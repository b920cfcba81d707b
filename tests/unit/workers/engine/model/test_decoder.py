"""The decoder's logits against transformers', position by position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from kernels.cpu.library import LEVELS, use_level
from kernels.registry import build
from tests.emulated.library import at_level
from workers.engine import SamplingParams
from workers.engine.core.sequence import SequenceState
from workers.engine.kv.kv_cache import KVCache
from workers.engine.model.config import ModelConfig, load_model_config
from workers.engine.model.decoder import Decoder
from workers.engine.model.layers.attention_backend import choose_attention
from workers.engine.model.weights import load_weights
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.step_builder import StepBuilder

pytestmark = pytest.mark.numeric

TOKEN_IDS = torch.randint(3, 259, (70,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every level of the CPU's kernels."""
    with at_level(request.param), use_level(request.param):
        yield request.param


def teacher_forced_logits(
    folder: Path, dtype: torch.dtype, chunks: list[int]
) -> Tensor:  # [num_chunks, vocab_size]
    """Feed TOKEN_IDS in chunks; return the logits after each."""
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
    )
    cache = _cache(config, dtype)
    params = SamplingParams(temperature=0.0)
    sequence = SequenceState(
        "one", None, [], params, None, seed=0, max_total_tokens=99, stop_checker=None, arrival_time_s=0.0
    )
    sequence.block_table = [5, 2, 7, 1, 3]
    logits = []
    for chunk in chunks:
        sequence.token_ids += TOKEN_IDS[sequence.num_tokens : sequence.num_tokens + chunk].tolist()
        built = builder.build(Schedule([ScheduledRows(sequence, chunk)], [], []))
        with torch.inference_mode():
            hidden = decoder.forward(built.forward, cache)
            sampling = builder.build_sampling(built.spans).sampling
            logits.append(decoder.logits(hidden, sampling.rows, sampling.segments)[0])
        sequence.num_computed_tokens += chunk
    return torch.stack(logits)


def _cache(config: ModelConfig, dtype: torch.dtype) -> KVCache:
    return KVCache(
        num_layers=config.num_layers,
        num_blocks=9,
        num_kv_heads=config.num_kv_heads,
        block_size=16,
        head_dim=config.head_dim,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def oracle_logits(model: LlamaForCausalLM) -> Tensor:  # [num_tokens, vocab_size]
    with torch.inference_mode():
        return model(TOKEN_IDS[None]).logits[0].float()


@pytest.mark.parametrize(
    "chunks",
    [[1] * 70, [70], [33, 1, 1, 20, 15], [16, 16, 16, 16, 6]],
    ids=["decode", "prefill", "mixed", "blocks"],
)
def test_float32_logits_equal_transformers(
    llama: LlamaForCausalLM, checkpoint: Path, chunks: list[int]
) -> None:
    logits = teacher_forced_logits(checkpoint, torch.float32, chunks)

    ends = torch.tensor(chunks).cumsum(0) - 1
    assert torch.allclose(logits, oracle_logits(llama)[ends], atol=1e-4, rtol=0)


def test_bfloat16_is_no_further_from_float32_than_transformers_bfloat16(
    llama: LlamaForCausalLM, checkpoint: Path
) -> None:
    exact = oracle_logits(llama)
    theirs = oracle_logits(LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval())

    ours = teacher_forced_logits(checkpoint, torch.bfloat16, [1] * 70)

    assert ours.dtype is torch.float32
    assert (ours - exact).abs().mean() <= 2.0 * (theirs - exact).abs().mean()
