"""The whole engine with LoRA by the interpreted Triton kernels: the same tokens as with the CPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.lora.segments import Pass, Segments
from kernels.lora.tables import LoRAModule
from kernels.registry import Kernels, build, resolve
from tests.unit.workers.engine.loader_pool import shared_loaders
from workers.engine import EngineConfig, LLMEngine, LoRAMix, LoRARequest, SamplingParams
from workers.engine.serving import assembly

TINY = Path(__file__).parents[4] / "examples" / "tiny"


def _answers() -> list[list[int]]:
    upper, reverse = (
        LoRARequest(name, number, str(TINY / "adapters" / name))
        for number, name in enumerate(("upper", "reverse"), 1)
    )
    loras = [upper, None, replace(upper, scale=0.5), LoRAMix([(upper, 0.5), (reverse, 0.5)])]
    with LLMEngine(EngineConfig(model=str(TINY / "base"), enable_lora=True, max_loras=2)) as engine:
        params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        outputs = engine.generate([[5, 9, 11, 6]] * 4, params, loras, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def _in_tiles(segments: Segments) -> Segments:
    passes = (Pass.of(one.runs, one.scales.numpy(), block_rows=16) for one in segments.passes)
    return Segments(segments.num_rows, tuple(passes))


def test_a_mixed_batch_gets_the_tokens_that_the_cpu_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []

    def with_triton(device: str, dtype: torch.dtype) -> Kernels:
        lora_add = resolve("lora_add", device, dtype, "triton")

        def counted(out: Tensor, x: Tensor, segments: Segments, module: LoRAModule) -> None:
            launches.append(module)
            lora_add(out, x, _in_tiles(segments), module)

        return replace(build(device, dtype), lora_add=counted)

    with shared_loaders():
        expected = _answers()
        monkeypatch.setattr(assembly, "build", with_triton)
        assert _answers() == expected
    assert launches
