"""What goes to an engine and back is the same on the other side."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, fields

import pytest

from workers.engine.core import outputs
from workers.engine.core.adapter_stats import RevisionStats
from workers.engine.core.outputs import CompletionOutput, RequestFailure, RequestMetrics, RequestOutput
from workers.engine.core.pickled_by_position import pickled_by_position
from workers.engine.serving import messages


@pickled_by_position
@dataclass(frozen=True, slots=True)
class _Sent:
    first: int
    second: list[str] = field(default_factory=list)


@pickled_by_position
@dataclass(frozen=True, slots=True)
class _Alone:
    only: tuple[int, ...]


@pytest.mark.parametrize("sent", [_Sent(1, ["a"]), _Sent(2), _Alone((1, 2)), _Alone(())])
def test_a_message_comes_back_as_it_was_sent(sent: object) -> None:
    assert pickle.loads(pickle.dumps(sent, -1)) == sent


def test_what_messages_share_is_sent_once() -> None:
    shared = ["a" * 100]

    received = pickle.loads(pickle.dumps((_Sent(1, shared), _Sent(2, shared)), -1))

    assert received[0].second is received[1].second


def test_an_end_of_a_request_keeps_every_field() -> None:
    metrics = RequestMetrics(1.0, 2.0, None, 3.0, 4, 5, 6.0, 7, RevisionStats(loads=1), 8)
    end = RequestOutput(
        "a:1", "p", [1], [CompletionOutput(0, "t", [2], "stop", 3)], True, None, metrics,
        RequestFailure("c", "m", True), None, {"temperature": 0.0}, ("w",),
    )  # fmt: skip
    assert len(fields(RequestOutput)) == 11, "a new field belongs into this test"

    assert pickle.loads(pickle.dumps(end, -1)) == end


def test_what_is_sent_for_every_job_is_pickled_that_way() -> None:
    often = [
        messages.AddRequest, messages.AbortRequest, messages.Started, messages.TokenDelta,
        messages.EngineEvents, outputs.RequestOutput, outputs.CompletionOutput, outputs.RequestMetrics,
        outputs.RequestFailure, outputs.Logprob, RevisionStats,
    ]  # fmt: skip

    assert [one for one in often if "__reduce__" not in vars(one)] == []
