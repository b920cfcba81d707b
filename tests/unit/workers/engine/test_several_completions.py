"""One request with several completions: each its own text, one output, one prompt in the accounts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, LoRARequest, RequestOutput, SamplingParams

pytestmark = [pytest.mark.numeric, BOTH]

MakeEngine = Callable[..., LLMEngine]
EOS_ID = 1


def params(n: int, **settings: Any) -> SamplingParams:
    defaults = {"max_tokens": 12, "temperature": 1.5, "seed": 7, "ignore_eos": True}
    return SamplingParams(n=n, **(defaults | settings))


def texts(output: RequestOutput) -> list[list[int]]:
    return [completion.token_ids for completion in output.outputs]


def run(engine: LLMEngine, num_steps: int = 1_000) -> list[RequestOutput]:
    outputs: list[RequestOutput] = []
    for _ in range(num_steps):
        if not engine.has_unfinished_requests():
            break
        outputs += engine.step()
    return outputs


def test_completions_are_in_order_and_the_first_is_that_of_n_one(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine(max_num_seqs=3)

    four, one = engine.generate([prompts[0]] * 2, [params(4), params(1)])

    assert [completion.index for completion in four.outputs] == [0, 1, 2, 3]
    assert texts(four)[0] == texts(one)[0]
    assert len({tuple(text) for text in texts(four)}) == 4


def test_completions_do_not_depend_on_neighbours_or_preemption(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    short = [prompts[0], prompts[1], prompts[4]]
    asked = [params(3, seed=seed, max_tokens=40) for seed in range(3)]
    alone = [make_engine().generate(prompt, one)[0] for prompt, one in zip(short, asked, strict=True)]

    tight = make_engine(max_model_len=128, num_kv_blocks=12)
    together = tight.generate(short, asked)

    assert [texts(output) for output in together] == [texts(output) for output in alone]
    assert tight.stats().num_preemptions > 0


def test_the_prompt_counts_once_and_the_rest_is_summed(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()

    (output,) = engine.generate(prompts[3], params(3))

    metrics, stats = output.metrics, engine.stats()
    assert (metrics.num_prompt_tokens, metrics.num_completion_tokens) == (17, 36)
    assert (stats.num_prompt_tokens, stats.num_completion_tokens) == (17, 36)
    assert metrics.device_ms == pytest.approx(stats.busy_ms)


def test_completions_end_one_by_one_and_come_out_together(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    likely_to_end = params(5, max_tokens=40, ignore_eos=False, logit_bias={EOS_ID: 9.0})
    engine.add_request("some", prompts[0], likely_to_end)

    started: list[str] = []
    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        started += engine.started
        engine.check_integrity()

    assert started == ["some"]
    (output,) = outputs
    assert len({len(text) for text in texts(output)}) > 1
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3, 4]


def test_an_abort_ends_all_completions_with_what_they_have(
    make_engine: MakeEngine, prompts: list[list[int]], look_ahead: int
) -> None:
    engine = make_engine(max_num_seqs=2)
    engine.add_request("some", prompts[0], params(3))
    run(engine, num_steps=2)

    output = engine.abort_request("some")

    assert output is not None
    assert [completion.finish_reason for completion in output.outputs] == ["abort"] * 3
    settled = 2 - look_ahead
    assert [len(text) for text in texts(output)] == [settled, settled, 0]
    assert engine.has_unfinished_requests() == (look_ahead == 1)  # the step in flight
    assert run(engine) == []
    assert not engine.has_unfinished_requests()
    assert engine.abort_request("some") is None
    assert engine.stats().num_free_kv_blocks == engine.info.num_kv_blocks


def test_the_failure_of_one_completion_ends_the_request(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    impossible = params(3, min_tokens=3, stop_token_ids=list(range(259)))

    failed, fine = engine.generate([prompts[0], prompts[1]], [impossible, params(2)])

    assert failed.error is not None
    assert failed.error.code == "no_token_allowed"
    assert [completion.finish_reason for completion in failed.outputs] == ["error"] * 3
    assert [completion.finish_reason for completion in fine.outputs] == ["length"] * 2
    engine.check_integrity()


@pytest.mark.parametrize("max_num_seqs", [1, 8])
def test_an_unusable_adapter_ends_all_completions_in_one_output(
    make_engine: MakeEngine, prompts: list[list[int]], tmp_path: Path, max_num_seqs: int
) -> None:
    engine = make_engine(enable_lora=True, max_num_seqs=max_num_seqs)
    engine.add_request("bad", prompts[0], params(3), LoRARequest("missing", 9, str(tmp_path / "missing")))

    outputs = run(engine)

    (output,) = outputs
    assert output.error is not None
    assert output.error.code == "adapter_not_found"
    assert len(output.outputs) == 3
    assert not engine.has_unfinished_requests()
    engine.check_integrity()
    engine.close()
