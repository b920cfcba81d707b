"""The engine with adapters against transformers with PEFT: mixed, alone, more of them than slots."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from tests.unit.products import assert_same_logits
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.errors import RequestError

# PEFT 0.21 asks transformers 5 for an attribute that is going away.
pytestmark = [
    pytest.mark.numeric,
    BOTH,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

NUM_TOKENS = 16
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
NAMES = ["attention", "mlp", "one-module", "everything", "patterns", "last-layer"]

MakeEngine = Callable[..., LLMEngine]
Oracle = Callable[[str | None, list[int]], list[int]]


@pytest.fixture(scope="module")
def oracle(llama: LlamaForCausalLM, adapters: dict[str, LoRARequest]) -> Oracle:
    """PEFT's greedy continuation under one adapter, or the base's under none."""
    model: PeftModel | None = None
    for name, request in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(copy.deepcopy(llama), request.lora_path, adapter_name=name)
        else:
            model.load_adapter(request.lora_path, adapter_name=name)
    assert model is not None
    answers: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}

    def continue_greedily(name: str | None, prompt: list[int]) -> list[int]:
        key = (name, tuple(prompt))
        if key not in answers:
            if name is not None:
                model.set_adapter(name)
            answers[key] = _generate(llama if name is None else model, prompt)
        return answers[key]

    return continue_greedily


def _generate(model: LlamaForCausalLM | PeftModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=2,
        )
    return out[0, len(prompt) :].tolist()


def token_lists(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def mixed_work(prompts: list[list[int]], repeats: int = 2) -> list[tuple[str | None, list[int]]]:
    """Every prompt with some adapter or none, neighbours always differing."""
    names: list[str | None] = [*NAMES, None]
    return [(names[index % len(names)], prompt) for index, prompt in enumerate(prompts * repeats)]


def run(
    engine: LLMEngine, work: list[tuple[str | None, list[int]]], adapters: dict[str, LoRARequest]
) -> list[list[int]]:
    requests = [None if name is None else adapters[name] for name, _ in work]
    return token_lists(engine.generate([prompt for _, prompt in work], GREEDY, lora_request=requests))


def test_the_adapters_change_the_answers(
    oracle: Oracle, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    answers = {tuple(oracle(name, prompts[0])) for name in [None, *adapters]}

    assert len(answers) == len(adapters) + 1


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_loras": 6}, id="a slot for each"),
        pytest.param({"max_loras": 2, "max_cpu_loras": 3}, id="more adapters than slots and host places"),
        pytest.param({"max_loras": 1}, id="a single slot"),
        pytest.param({"max_loras": 3, "max_num_seqs": 5, "max_num_batched_tokens": 11}, id="chunked prefill"),
        pytest.param({"max_loras": 3, "max_model_len": 128, "num_kv_blocks": 14}, id="preemption"),
    ],
)
def test_a_mixed_batch_equals_peft(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    oracle: Oracle,
    prompts: list[list[int]],
    settings: dict[str, int],
) -> None:
    engine = make_engine(enable_lora=True, **settings)
    work = mixed_work(prompts)

    tokens = run(engine, work, adapters)

    assert tokens == [oracle(name, prompt) for name, prompt in work]
    engine.check_integrity()
    engine.close()


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_alone_equals_peft(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    oracle: Oracle,
    prompts: list[list[int]],
    name: str,
) -> None:
    engine = make_engine(enable_lora=True)

    tokens = token_lists(engine.generate(prompts[:3], GREEDY, lora_request=adapters[name]))

    assert tokens == [oracle(name, prompt) for prompt in prompts[:3]]
    engine.close()


def test_base_rows_do_not_notice_adapter_rows(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    engine = make_engine(enable_lora=True, dtype="bfloat16")

    tap = LogitTap(engine)

    alone = engine.generate(prompts, GREEDY)
    mixed = engine.generate(
        prompts + prompts, GREEDY, lora_request=[None] * 12 + [adapters["everything"]] * 12
    )

    for one, other in zip(alone, mixed[:12], strict=True):
        assert_same_logits(tap.of(one.request_id), tap.of(other.request_id), "bfloat16")
        for output in (one, other):
            assert output.outputs[0].token_ids == tap.of(output.request_id).argmax(dim=-1).tolist()
    engine.close()


def test_behaviour_09_a_refused_adapter_fails_its_own_request_only(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    oracle: Oracle,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    missing = LoRARequest("missing", 77, str(tmp_path / "missing"))
    engine = make_engine(enable_lora=True)

    bad, good = engine.generate(prompts[:2], GREEDY, lora_request=[missing, adapters["mlp"]])

    assert bad.error is not None
    assert bad.error.code == "adapter_not_found"
    assert (bad.outputs[0].finish_reason, bad.outputs[0].token_ids) == ("error", [])
    assert good.outputs[0].token_ids == oracle("mlp", prompts[1])
    assert not engine.has_unfinished_requests()
    engine.close()


def test_an_adapter_over_the_rank_limit_is_refused(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    engine = make_engine(enable_lora=True, max_lora_rank=8)

    output = engine.generate(prompts[0], GREEDY, lora_request=adapters["one-module"])[0]

    assert output.error is not None
    assert output.error.code == "adapter_rank"
    engine.close()


def test_without_lora_an_adapter_request_is_refused_at_once(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    with pytest.raises(RequestError, match="enable_lora"):
        make_engine().generate(prompts[0], GREEDY, lora_request=adapters["mlp"])


def test_slots_go_round_although_one_adapter_never_runs_dry(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    engine = make_engine(enable_lora=True, max_loras=1, max_cpu_loras=2, max_num_seqs=4)
    engine.add_lora(adapters["attention"])
    long = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    for index in range(3):  # they end one after the other, so that the slot never falls idle by itself
        staggered = SamplingParams(max_tokens=10 * (index + 1), temperature=0.0, ignore_eos=True)
        engine.add_request(f"popular-{index}", prompts[0], staggered, adapters["attention"])
    engine.step()
    engine.add_request("rare", prompts[1], GREEDY, adapters["mlp"])

    ended: set[str] = set()
    for number in range(400):
        if len([key for key in engine._by_id if key != "rare"]) < 3:
            engine.add_request(f"more-{number}", prompts[0], long, adapters["attention"])
        ended |= {output.request_id for output in engine.step()}
        if "rare" in ended:
            break

    assert "rare" in ended
    engine.close()


def test_the_slots_obey_their_owner(make_engine: MakeEngine, adapters: dict[str, LoRARequest]) -> None:
    engine = make_engine(enable_lora=True, max_loras=1, max_cpu_loras=2)

    assert engine.add_lora(adapters["attention"])
    assert not engine.add_lora(adapters["attention"])
    assert engine.pin_lora(1)
    with pytest.raises(RuntimeError):
        engine.pin_lora(2) if engine.add_lora(adapters["mlp"]) else None
    assert engine.unpin_lora(1)
    with pytest.raises(ValueError, match="55"):
        engine.pin_lora(55)

    assert engine.list_loras() == {1, 2}
    assert engine.remove_lora(2)
    assert not engine.remove_lora(2)
    assert engine.residency_epoch == len(engine.drain_residency_changes())
    engine.close()
