"""An executor that does later what it was told to launch, so that whoever relies on it being done is seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from workers.engine import LLMEngine
from workers.engine.core.step_input import ForwardInput, SamplingInput, StepOutput
from workers.engine.serving.executor import Executor, InFlightStep, SampledStep


class Task:
    """Something launched; it has a result once the executor came to it."""

    def __init__(self, executor: DelayedExecutor, work: Callable[[], Any]) -> None:
        self._executor = executor
        self._work = work
        self.is_done = False
        self.result: Any = None

    def run(self) -> None:
        self.result, self.is_done = self._work(), True

    def wait(self) -> StepOutput:
        """Return the output of a sampled step."""
        self._executor.run_until(self)
        output: StepOutput = self.result.wait()
        return output


class DelayedExecutor:
    """A device that works beside the host: in the order of the launches, but as slowly as it is told.

    `pace` says how many launches are worked off with each further one; what is waited for is done at once.
    """

    look_ahead = 1
    num_replayed_steps = 0

    def __init__(self, engine: LLMEngine, pace: Iterator[int]) -> None:
        self._inner: Executor = engine._parts.executor
        self._pace = pace
        self._todo: deque[Task] = deque()
        self.events: list[str] = []
        engine._parts = engine._parts._replace(executor=self)

    def forward(self, step: ForwardInput) -> InFlightStep:
        """Launch the layers."""
        self.events.append("forward")
        return self._launch(lambda: self._inner.forward(step))

    def sample(self, step: InFlightStep, sampling: SamplingInput) -> SampledStep:
        """Launch the choice of tokens."""
        assert isinstance(step, Task)
        self.events.append("sample")
        return self._launch(lambda: self._inner.sample(step.result, sampling))

    def run_until(self, task: Task) -> None:
        """Work off what was launched, up to a task."""
        self.events.append("wait")
        while not task.is_done:
            self._todo.popleft().run()

    def _launch(self, work: Callable[[], Any]) -> Task:
        task = Task(self, work)
        self._todo.append(task)
        for _ in range(min(next(self._pace), len(self._todo))):
            self._todo.popleft().run()
        return task
