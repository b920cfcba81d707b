"""What a worker may expect of an engine's process, asked of a real one and of its double."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.polling import eventually
from tests.unit.workers.batch_jobs import engine_output
from tests.unit.workers.scripted_engine import ScriptedEngine
from workers.engine.core.config import EngineConfig
from workers.engine.core.errors import EngineDied
from workers.engine.core.outputs import RequestOutput
from workers.engine.core.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.serving.messages import AbortRequest, AddRequest, EngineEvents, TokenDelta
from workers.engine.serving.process import EngineProcess

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"
START_S = 120.0


class RealEngine(EngineProcess):
    """The real one; what the test has the double say, it says by itself."""

    def say(self, *finished: RequestOutput, **events: Any) -> None:
        """Do nothing."""

    def die(self) -> None:
        """Be killed."""
        os.kill(self.pid, signal.SIGKILL)


class Double(ScriptedEngine):
    """The double."""

    def die(self) -> None:
        """Be found dead."""
        self.events.put(EngineDied(-signal.SIGKILL))


@pytest.fixture(scope="module")
def real() -> Iterator[RealEngine]:
    """The process that all tests share, as far as they leave it alive."""
    process = RealEngine(EngineConfig(model=str(BASE), max_num_seqs=2, num_threads=1))
    yield process
    process.stop()


@pytest.fixture(params=["scripted", "real"])
def engine(request: pytest.FixtureRequest, real: RealEngine) -> RealEngine | Double:
    """An engine that has started and has nothing to do."""
    if request.param == "scripted":
        return Double()
    if not real.is_alive:
        real.start(START_S)
    return real


def add(request_id: str, max_tokens: int) -> AddRequest:
    """Ask for a text that is told token by token and goes on until its limit."""
    params = SamplingParams(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    return AddRequest(request_id, "hello>", None, params, None)


class Told:
    """All that an engine has told."""

    def __init__(self, engine: RealEngine | Double) -> None:
        self._engine = engine
        self.events: list[EngineEvents] = []

    def hear(self) -> Self:
        """Take in what comes next."""
        if (event := self._engine.receive(0.1)) is not None:
            self.events.append(event)
        return self

    @property
    def started(self) -> list[str]:
        """The requests that have started."""
        return [one.request_id for event in self.events for one in event.started]

    @property
    def finished(self) -> dict[str, RequestOutput]:
        """The requests that have ended."""
        return {output.request_id: output for event in self.events for output in event.finished}

    @property
    def text(self) -> str:
        """What was told token by token."""
        return "".join(delta.text for event in self.events for delta in event.deltas)

    def await_started(self, request_id: str) -> None:
        """Listen until a request has started."""
        eventually(lambda: request_id in self.hear().started, START_S)

    def await_finished(self, request_id: str) -> RequestOutput:
        """Listen until a request has ended."""
        return eventually(lambda: self.hear().finished.get(request_id), START_S)


def test_a_request_starts_tells_its_text_and_ends_once_with_its_costs(engine: RealEngine | Double) -> None:
    told = Told(engine)

    engine.send(add("one", 3))
    engine.say(started=("one",))
    engine.say(deltas=(TokenDelta("one", 0, "HEL", 1),))
    engine.say(engine_output("one", "length"), deltas=(TokenDelta("one", 0, "LO", 2),))
    output = told.await_finished("one")

    assert told.started == ["one"]
    assert told.text == output.outputs[0].text
    assert output.finished
    assert (output.error, output.outputs[0].finish_reason) == (None, "length")
    assert output.metrics.num_completion_tokens == len(output.outputs[0].token_ids) == 3
    assert output.metrics.num_prompt_tokens == len(output.prompt_token_ids) > 0
    assert output.metrics.device_ms > 0
    last = told.events[-1]
    assert last.free_seqs > 0
    assert last.free_kv_blocks > 0


def test_an_abort_ends_what_runs_as_aborted_and_is_passed_over_for_what_is_unknown(
    engine: RealEngine | Double,
) -> None:
    told = Told(engine)
    engine.send(AbortRequest("nobody"))
    engine.send(add("long", 200))
    engine.say(started=("long",))
    told.await_started("long")

    engine.send(AbortRequest("long"))
    engine.say(engine_output("long", "abort", "HEL"))

    assert told.await_finished("long").outputs[0].finish_reason == "abort"
    assert set(told.finished) == {"long"}


def test_an_interrupt_ends_a_wait_for_the_engine(engine: RealEngine | Double) -> None:
    told = Told(engine)
    engine.send(add("one", 1))
    engine.say(started=("one",))
    engine.say(engine_output("one", "length"))
    told.await_finished("one")

    engine.interrupt()

    assert engine.receive(None) is None


def test_a_dead_engine_is_told_as_such(engine: RealEngine | Double) -> None:
    engine.die()

    with pytest.raises(EngineDied) as died:
        eventually(lambda: engine.receive(0.1), START_S)

    assert died.value.exitcode == -signal.SIGKILL
