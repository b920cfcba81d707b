"""Requests that stream are told their text as it becomes certain, and others pay nothing for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, RequestOutput, RequestOutputKind, SamplingParams
from workers.engine.core.errors import InvalidParams

pytestmark = BOTH

DELTA, CUMULATIVE = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE
PROMPTS = [[5, 9, 200], [30, 31, 32, 33, 34], [77]]

MakeEngine = Callable[..., LLMEngine]


def run(engine: LLMEngine, asked: dict[str, tuple[list[int], SamplingParams]]) -> list[RequestOutput]:
    """Serve requests to their end; returns everything that was told, in order."""
    for request_id, (prompt, params) in asked.items():
        engine.add_request(request_id, prompt, params)
    told: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        told += engine.step()
    return told


def text_of(outputs: list[RequestOutput]) -> str:
    return "".join(output.outputs[0].text for output in outputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5, "seed": 3},
        {"ignore_eos": True, "stop": ["zz", "e"], "temperature": 2.0, "seed": 5},
        {"ignore_eos": True, "stop": ["a", "b"], "include_stop_str_in_output": True, "temperature": 2.0},
        {"skip_special_tokens": False, "temperature": 2.0, "seed": 9},
    ],
)
def test_deltas_add_up_to_the_final_text_and_tokens(
    make_engine: MakeEngine, options: dict[str, object]
) -> None:
    plain = SamplingParams(max_tokens=40, **options)  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=40, output_kind=DELTA, **options)  # type: ignore[arg-type]
    asked = {f"{number}": (prompt, params) for number, prompt in enumerate(PROMPTS)}

    told = run(make_engine(), asked)
    alone = run(make_engine(), {name: (prompt, plain) for name, (prompt, _) in asked.items()})

    finals = {output.request_id: output for output in told if output.finished}
    for expected in alone:
        name, final = expected.request_id, finals[expected.request_id]
        parts = [output for output in told if output.request_id == name and not output.finished]
        assert final.outputs == expected.outputs
        assert text_of(parts) == final.outputs[0].text
        assert [part.outputs[0].token_ids for part in parts] == [[one] for one in final.outputs[0].token_ids]
        assert [part.outputs[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].outputs[0].finish_reason == final.outputs[0].finish_reason
        assert {tuple(part.prompt_token_ids) for part in parts} == {tuple(final.prompt_token_ids)}


def test_cumulative_outputs_grow_into_the_final_one(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, output_kind=CUMULATIVE)

    *parts, final = run(make_engine(), {"r": ([5, 9, 200], params)})

    texts = [part.outputs[0].text for part in parts]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert [len(part.outputs[0].token_ids) for part in parts] == list(range(1, 31))
    assert parts[-1].outputs[0] == final.outputs[0]


def test_only_those_who_ask_are_told_before_the_end(make_engine: MakeEngine) -> None:
    quiet = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    asked = {
        "quiet": ([5, 9], quiet),
        "loud": ([5, 9], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, output_kind=DELTA)),
    }

    told = run(make_engine(), asked)

    assert [output.request_id for output in told if not output.finished] == ["loud"] * 8
    first, second = (output.outputs[0].token_ids for output in told if output.finished)
    assert first == second


def test_a_preempted_request_is_told_nothing_twice(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, output_kind=DELTA)
    engine = make_engine(max_model_len=96, num_kv_blocks=8)

    told = run(engine, {f"{number}": (prompt, params) for number, prompt in enumerate(PROMPTS)})

    assert engine.stats().num_preemptions > 0
    for final in (output for output in told if output.finished):
        parts = [one for one in told if one.request_id == final.request_id and not one.finished]
        assert text_of(parts) == final.outputs[0].text
        assert len(parts) == 60


def test_an_aborted_request_ends_with_all_it_had_been_told(make_engine: MakeEngine, look_ahead: int) -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=50, temperature=0, ignore_eos=True, output_kind=DELTA)
    engine.add_request("r", [5, 9, 200], params)
    told = [output for _ in range(10) for output in engine.step()]

    final = engine.abort_request("r")

    assert final is not None
    assert len(final.outputs[0].token_ids) == len(told) == 10 - look_ahead
    assert final.outputs[0].text.startswith(text_of(told))


def test_generate_returns_final_outputs_only(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_tokens=5, temperature=0, output_kind=DELTA)

    (output,) = make_engine().generate([[5, 9, 200]], params)

    assert output.finished


def test_an_output_kind_of_another_type_is_refused() -> None:
    with pytest.raises(InvalidParams, match="output_kind is 1; give a RequestOutputKind"):
        SamplingParams(output_kind=1)  # type: ignore[arg-type]


def test_each_completion_of_a_request_has_its_own_stream(make_engine: MakeEngine) -> None:
    params = SamplingParams(max_tokens=12, temperature=2.0, seed=4, n=3, output_kind=DELTA)

    *parts, final = run(make_engine(), {"r": ([5, 9, 200], params)})

    for completion in final.outputs:
        mine = [part for part in parts if part.outputs[0].index == completion.index]
        assert text_of(mine) == completion.text
        assert mine[-1].outputs[0].finish_reason == completion.finish_reason
