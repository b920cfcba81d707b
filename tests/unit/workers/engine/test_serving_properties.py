"""Whatever load comes, each request's answer is the one it gets alone, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, LoRAMix, LoRARequest, RequestOutput, SamplingParams
from workers.engine.core.lora_request import AnyLoRA

pytestmark = [pytest.mark.numeric, BOTH]

MakeEngine = Callable[..., LLMEngine]
MAX_NEW = 12
MAX_LEN = 80
MAX_STEPS = 2000
ADAPTERS = [None, "everything", "mlp", "last-layer", "mix"]


@dataclass(frozen=True, slots=True)
class Load:
    """One request of a random load."""

    arrives_at_step: int
    prompt: int
    adapter: int
    num_new_tokens: int
    aborted_after_steps: int | None


LOADS = st.lists(
    st.builds(
        Load,
        arrives_at_step=st.integers(0, 12),
        prompt=st.integers(0, 5),
        adapter=st.integers(0, len(ADAPTERS) - 1),
        num_new_tokens=st.integers(1, MAX_NEW),
        aborted_after_steps=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=10,
)


@pytest.fixture
def stems() -> list[list[int]]:
    """Prompts that begin alike, cut before, at and behind the ends of blocks."""
    stem = torch.randint(3, 259, (60,), generator=torch.Generator().manual_seed(11)).tolist()
    return [stem[:1], stem[:16], stem[:33], stem[:48], stem, [*stem[:20], 9, *stem[21:40]]]


@pytest.fixture
def loras(adapters: dict[str, LoRARequest]) -> list[AnyLoRA | None]:
    """The base, three adapters, and a mix of two of them."""
    mix = LoRAMix([(adapters["everything"], 0.5), (adapters["mlp"], -0.5)])
    return [None if name is None else adapters.get(name, mix) for name in ADAPTERS]


@pytest.fixture
def alone(make_engine: MakeEngine, stems: list[list[int]], loras: list[AnyLoRA | None]) -> list[list[int]]:
    """Every prompt's longest answer under every adapter, one at a time, nothing cached."""
    engine = make_engine(enable_lora=True, enable_prefix_caching=False, max_model_len=MAX_LEN)
    params = SamplingParams(max_tokens=MAX_NEW, temperature=0.0, ignore_eos=True)
    answers = [engine.generate(prompt, params, lora) for prompt, lora in product(stems, loras)]
    engine.close()
    return [answer[0].outputs[0].token_ids for answer in answers]


def serve(
    engine: LLMEngine, loads: list[Load], stems: list[list[int]], loras: list[AnyLoRA | None]
) -> list[RequestOutput]:
    """Run the load to its end, checking every block after every step."""
    outputs: list[RequestOutput] = []
    coming = sorted(enumerate(loads), key=lambda item: item[1].arrives_at_step)
    aborts: list[tuple[int, str]] = []
    step = 0
    while coming or engine.has_unfinished_requests():
        while coming and coming[0][1].arrives_at_step <= step:
            number, load = coming.pop(0)
            params = SamplingParams(max_tokens=load.num_new_tokens, temperature=0.0, ignore_eos=True)
            engine.add_request(str(number), stems[load.prompt], params, loras[load.adapter])
            if load.aborted_after_steps is not None:
                aborts.append((step + load.aborted_after_steps, str(number)))
        for _, request_id in [abort for abort in aborts if abort[0] == step]:
            if (output := engine.abort_request(request_id)) is not None:
                outputs.append(output)
        outputs += engine.step()
        engine.check_integrity()
        step += 1
        assert step < MAX_STEPS
    return outputs


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    loads=LOADS,
    num_blocks=st.sampled_from([5, 7, 20]),
    budget=st.sampled_from([4, 9, 64]),
    max_loras=st.sampled_from([2, 3]),
)
def test_every_answer_is_the_one_given_alone_and_nothing_is_left_behind(
    make_engine: MakeEngine,
    stems: list[list[int]],
    loras: list[AnyLoRA | None],
    alone: list[list[int]],
    loads: list[Load],
    num_blocks: int,
    budget: int,
    max_loras: int,
) -> None:
    engine = make_engine(
        enable_lora=True,
        max_loras=max_loras,
        max_cpu_loras=3,
        max_num_seqs=4,
        max_model_len=MAX_LEN,
        max_num_batched_tokens=budget,
        num_kv_blocks=num_blocks,
    )
    for lora in loras[1:4]:
        assert isinstance(lora, LoRARequest)
        engine.add_lora(lora)

    outputs = serve(engine, loads, stems, loras)

    assert sorted(int(output.request_id) for output in outputs) == list(range(len(loads)))
    for output in outputs:
        load, completion = loads[int(output.request_id)], output.outputs[0]
        answer = alone[load.prompt * len(ADAPTERS) + load.adapter]
        num_tokens = len(completion.token_ids)
        assert completion.token_ids == answer[:num_tokens]
        if completion.finish_reason == "length":
            assert num_tokens == load.num_new_tokens
        else:
            assert completion.finish_reason == "abort"
            assert load.aborted_after_steps is not None
    assert engine.stats().num_free_kv_blocks == num_blocks
    for lora_int_id in engine.list_loras():
        assert engine.remove_lora(lora_int_id)  # refused for one that anybody still used
    engine.close()
