"""Scaled adapters and mixes of several, in mixed batches, against PEFT's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.unit.products import assert_same_logits
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, LoRAMix, LoRARequest, SamplingParams
from workers.engine.core.errors import RequestError
from workers.engine.core.lora_request import AnyLoRA

# PEFT 0.21 asks transformers 5 for an attribute that is going away.
pytestmark = [
    pytest.mark.numeric,
    BOTH,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)

MakeEngine = Callable[..., LLMEngine]
Weights = tuple[tuple[str, float], ...]


class Case(NamedTuple):
    """A composition by adapter names, as PEFT is told and as the engine is."""

    weights: Weights
    scales: tuple[float, ...] = ()  # of the requests in a mix; the engine multiplies them into the weights

    def lora(self, adapters: dict[str, LoRARequest]) -> AnyLoRA | None:
        if not self.weights:
            return None
        if len(self.weights) == 1:
            ((name, scale),) = self.weights
            return scaled(adapters[name], scale)
        scales = self.scales or (1.0,) * len(self.weights)
        return LoRAMix(
            [
                (scaled(adapters[name], scale), weight / scale)
                for (name, weight), scale in zip(self.weights, scales, strict=True)
            ]
        )


# "everything" is rsLoRA and never the first of a mix: PEFT 0.21 would take the mix for rsLoRA as well, and
# multiply it by the square root of its rank.
CASES = [
    Case(()),
    Case((("attention", 1.0),)),
    Case((("attention", 0.5),)),
    Case((("everything", -0.75),)),
    Case((("patterns", 0.0),)),
    Case((("attention", 0.7), ("mlp", 0.6)), scales=(0.5, 2.0)),
    Case((("mlp", 0.6), ("attention", 0.7))),
    Case((("attention", 0.5), ("one-module", -1.5))),
    Case((("mlp", 0.5), ("everything", 0.25), ("one-module", 1.25))),
]


def scaled(request: LoRARequest, scale: float) -> LoRARequest:
    return LoRARequest(request.lora_name, request.lora_int_id, request.lora_path, scale=scale)


class Oracle:
    """One PEFT model that holds every composition as an adapter of its own."""

    def __init__(self, llama: LlamaForCausalLM, adapters: dict[str, LoRARequest]) -> None:
        first, *others = adapters.values()
        self._base = llama
        self._model = PeftModel.from_pretrained(
            copy.deepcopy(llama), first.lora_path, adapter_name=first.lora_name
        )
        for request in others:
            self._model.load_adapter(request.lora_path, adapter_name=request.lora_name)

    def logits(self, weights: Weights, token_ids: list[int]) -> Tensor:  # [num_tokens, vocab_size]
        """Return the logits after every token."""
        with torch.inference_mode():
            return self._serving(weights)(torch.tensor([token_ids])).logits[0].float()

    def _serving(self, weights: Weights) -> LlamaForCausalLM | PeftModel:
        if len(weights) == 1:
            self._scale(*weights[0])
            self._model.set_adapter(weights[0][0])
        elif weights:
            names, factors = map(list, zip(*weights, strict=True))
            for name in names:
                self._scale(name, 1.0)
            mix = " and ".join(names)
            self._model.add_weighted_adapter(names, factors, mix, combination_type="cat")
            self._model.set_adapter(mix)
        return self._model if weights else self._base

    def _scale(self, name: str, scale: float) -> None:
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(name, scale)


@pytest.fixture(scope="module")
def oracle(llama: LlamaForCausalLM, adapters: dict[str, LoRARequest]) -> Oracle:
    return Oracle(llama, adapters)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_loras": 6}, id="a slot for each"),
        pytest.param({"max_loras": 3, "max_cpu_loras": 3, "max_num_batched_tokens": 40}, id="three slots"),
    ],
)
def test_scaled_adapters_and_mixes_in_one_batch_equal_pefts(
    make_engine: MakeEngine,
    adapters: dict[str, LoRARequest],
    oracle: Oracle,
    prompts: list[list[int]],
    settings: dict[str, int],
) -> None:
    engine = make_engine(enable_lora=True, **settings)
    tap = LogitTap(engine)

    outputs = engine.generate(prompts[:9], GREEDY, lora_request=[case.lora(adapters) for case in CASES])

    for case, prompt, output in zip(CASES, prompts, outputs, strict=False):
        tokens = output.outputs[0].token_ids
        logits = oracle.logits(case.weights, prompt + tokens)[len(prompt) - 1 : -1]
        torch.testing.assert_close(tap.of(output.request_id), logits, atol=1e-4, rtol=0)
        assert tokens == logits.argmax(dim=-1).tolist(), case
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) >= 7
    engine.check_integrity()
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_of_one_and_a_mix_of_one_change_no_bit(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]], dtype: str
) -> None:
    engine = make_engine(enable_lora=True, dtype=dtype)
    tap = LogitTap(engine)
    one = adapters["everything"]
    asked: list[LoRARequest | LoRAMix | None] = [
        one,
        scaled(one, 1.0),
        LoRAMix([(one, 1.0)]),
        LoRAMix([(scaled(one, 0.5), 2.0)]),
    ]

    outputs = engine.generate(prompts[:1] * 4, GREEDY, lora_request=asked)

    plain, *others = [tap.of(output.request_id) for output in outputs]
    for other in others:
        assert_same_logits(plain, other, dtype)
    engine.close()


def test_rslora_counts_with_its_own_scaling_wherever_it_stands_in_a_mix(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    engine = make_engine(enable_lora=True)
    members = [(adapters["everything"], 0.5), (adapters["mlp"], 1.0)]
    tap = LogitTap(engine)

    first, last = engine.generate(
        prompts[2:3] * 2, GREEDY, lora_request=[LoRAMix(members), LoRAMix(members[::-1])]
    )

    torch.testing.assert_close(tap.of(first.request_id), tap.of(last.request_id), atol=1e-4, rtol=0)
    engine.close()


def test_mixes_that_share_few_slots_and_host_places_all_end_as_they_would_alone(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    names = ["attention", "mlp", "one-module", "everything"]
    pairs = [(one, other) for one in names for other in names if one != other][::2]
    asked = [LoRAMix([(adapters[one], 0.5), (adapters[other], 1.0)]) for one, other in pairs]
    wide = make_engine(enable_lora=True, max_loras=4)
    narrow = make_engine(enable_lora=True, max_loras=2, max_cpu_loras=2)

    expected = wide.generate(prompts[:6], GREEDY, lora_request=asked)
    outputs = narrow.generate(prompts[:6], GREEDY, lora_request=asked)

    for output, other in zip(outputs, expected, strict=True):
        assert (output.error, other.error) == (None, None)
        assert output.outputs[0].token_ids == other.outputs[0].token_ids
    stats = narrow.stats().adapters
    assert stats is not None
    assert sum(output.metrics.adapter_use.loads for output in outputs) == stats.loads
    assert sum(output.metrics.adapter_use.hits for output in outputs) == stats.hits
    for engine in (wide, narrow):
        engine.check_integrity()
        engine.close()


def test_a_mix_of_more_adapters_than_slots_is_refused_at_once_with_both_numbers(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    engine = make_engine(enable_lora=True, max_loras=2)
    mix = LoRAMix([(adapters[name], 1.0) for name in ("attention", "mlp", "one-module")])

    with pytest.raises(RequestError, match="asks for 3 adapters at once, but max_loras is 2"):
        engine.generate(prompts[0], GREEDY, lora_request=mix)
    assert not engine.has_unfinished_requests()
    engine.close()


def test_a_mix_with_an_adapter_that_cannot_be_served_fails_alone_and_holds_nothing(
    make_engine: MakeEngine, adapters: dict[str, LoRARequest], prompts: list[list[int]]
) -> None:
    engine = make_engine(enable_lora=True, max_loras=2)
    missing = LoRARequest("missing", 77, "nowhere")

    bad, good = engine.generate(
        prompts[:2], GREEDY, lora_request=[LoRAMix([(adapters["mlp"], 1.0), (missing, 1.0)]), adapters["mlp"]]
    )

    assert bad.error is not None
    assert (bad.error.code, good.error) == ("adapter_not_found", None)
    assert engine.remove_lora(adapters["mlp"].lora_int_id)  # in use by nobody
    engine.close()
