"""What one row makes of its token may raise: its request fails, its neighbours are served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workers.engine import LLMEngine
from workers.engine.core.outputs import RequestOutput
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.serving.engine import Launch
from workers.engine.serving.engine_counters import StepTimes

MakeEngine = Callable[..., LLMEngine]
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)


def fail_for(request_id: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method of the output processor raise for one request."""

    def failing(sequence: Any, *arguments: Any) -> Any:
        if sequence.request_id == request_id:
            raise KeyError("a token that nobody knows")
        return function(sequence, *arguments)

    return failing


@pytest.mark.parametrize("method", ["ending", "output"])
def test_an_exception_in_one_row_fails_that_row(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = make_engine()
    processor = engine._parts.output_processor
    monkeypatch.setattr(processor, method, fail_for("guilty", getattr(processor, method)))
    for name in ("first", "guilty", "last"):
        engine.add_request(name, [5, 6, 7], GREEDY)

    ended: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        ended |= {output.request_id: output for output in engine.step()}

    failure = ended["guilty"].error
    assert failure is not None
    assert (failure.code, failure.retryable) == ("internal", False)
    assert "KeyError: 'a token that nobody knows'" in failure.message
    neighbours = [ended["first"].outputs[0], ended["last"].outputs[0]]
    assert [len(one.token_ids) for one in neighbours] == [4, 4]
    engine.check_integrity()
    engine.close()


def test_each_step_is_told_before_it_is_computed_with_all_that_is_in_flight(make_engine: MakeEngine) -> None:
    engine = make_engine()
    launches: list[Launch] = []
    engine.on_launch = launches.append
    for name in ("one", "two"):
        engine.add_request(name, [5, 6, 7], GREEDY)

    while engine.has_unfinished_requests():
        engine.step()

    assert {launch.request_ids for launch in launches} == {("one", "two")}
    assert launches[0].num_tokens == 6
    assert launches[0].predicted_s == 0.0
    assert all(launch.predicted_s > 0.0 for launch in launches[2:])
    engine.close()


def test_a_step_is_predicted_by_those_of_its_size_and_a_larger_one_by_its_tokens() -> None:
    times = StepTimes()
    assert times.predict_s(8) == 0.0

    times.observe(8, 1.0)
    times.observe(1, 0.5)

    assert times.predict_s(9) == 1.0
    assert times.predict_s(16) == 2.0
    assert times.predict_s(8000) == 512.0
    assert times.predict_s(1) == 0.5
    assert times.predict_s(2) == 1.0
    times.observe(8, 2.0)
    assert 1.0 < times.predict_s(8) < 2.0
