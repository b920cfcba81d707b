"""NaN and infinity: in an adapter's file or in what it computes, they end its own requests and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.unit.products import assert_same_logits
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, LoRAMix, LoRARequest, SamplingParams
from workers.engine.core.lora_request import AnyLoRA

pytestmark = [pytest.mark.numeric, BOTH]

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)

MakeEngine = Callable[..., LLMEngine]


def copy_with(request: LoRARequest, folder: Path, number: int, value: float) -> LoRARequest:
    """An adapter like another but for one tensor, filled with `value`."""
    folder.mkdir()
    source = Path(request.lora_path)
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    first = next(name for name in sorted(tensors) if "v_proj.lora_A" in name)
    tensors[first].fill_(value)
    save_file(tensors, folder / "adapter_model.safetensors")
    return LoRARequest(folder.name, number, str(folder))


@pytest.fixture
def overflowing(adapters: dict[str, LoRARequest], tmp_path: Path) -> LoRARequest:
    """An adapter of finite weights whose products are not."""
    return copy_with(adapters["everything"], tmp_path / "overflowing", 98, 3e38)


def test_an_adapter_file_with_nan_is_refused_and_its_neighbours_are_served(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]], tmp_path: Path
) -> None:
    bad = copy_with(adapters["everything"], tmp_path / "nan", 99, float("nan"))
    engine = make_engine(enable_lora=True)

    failed, mixed, served = engine.generate(
        prompts[:3], GREEDY, lora_request=[bad, LoRAMix([(adapters["mlp"], 1.0), (bad, 0.0)]), None]
    )

    for output in (failed, mixed):
        assert output.error is not None
        assert (output.error.code, output.outputs[0].token_ids) == ("adapter_file", [])
        assert "adapter 'nan'" in output.error.message
        assert "v_proj.lora_A.weight' holds NaN or infinite numbers (320 of 320)" in output.error.message
    assert (served.error, len(served.outputs[0].token_ids)) == (None, 12)
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_infinite_logits_fail_their_own_requests_and_neighbours_keep_every_bit(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    overflowing: LoRARequest,
    prompts: list[list[int]],
    dtype: str,
) -> None:
    good: list[AnyLoRA | None] = [None, adapters["mlp"], LoRAMix([(adapters["mlp"], 0.5)])] * 2
    bad: list[AnyLoRA] = [overflowing, LoRAMix([(adapters["mlp"], 1.0), (overflowing, -1.0)])]
    # Few blocks: those that held NaN serve others while the first batch still runs.
    engine = make_engine(
        enable_lora=True,
        dtype=dtype,
        max_loras=2,
        max_model_len=128,
        num_kv_blocks=20,
        enable_prefix_caching=False,
    )
    tap = LogitTap(engine)
    among = engine.generate(prompts[:8], GREEDY, lora_request=[*good, *bad])
    without = engine.generate(prompts[:6], GREEDY, lora_request=good)

    for output in among[6:]:
        assert output.error is not None
        assert (output.error.code, output.error.retryable) == ("non_finite_logits", False)
        assert "'overflowing'" in output.error.message
    for beside, alone in zip(among[:6], without, strict=True):
        assert (beside.error, len(beside.outputs[0].token_ids)) == (None, 12)
        assert_same_logits(tap.of(beside.request_id), tap.of(alone.request_id), dtype)
    engine.check_integrity()
    engine.close()


def test_infinite_logits_count_against_every_adapter_of_the_request(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    overflowing: LoRARequest,
    prompts: list[list[int]],
) -> None:
    engine = make_engine(enable_lora=True)
    mix = LoRAMix([(adapters["mlp"], 1.0), (overflowing, 0.5)])

    outputs = engine.generate(prompts[:4], GREEDY, lora_request=[overflowing, mix, adapters["mlp"], None])

    counted = engine.stats().adapters
    assert counted is not None
    assert sorted(revision.non_finite for revision in counted.revisions.values()) == [1, 2]
    assert counted.non_finite == 3
    assert [output.metrics.adapter_use.non_finite for output in outputs] == [1, 2, 0, 0]
    assert counted.failures == 0  # its files are as they should be
    engine.close()
