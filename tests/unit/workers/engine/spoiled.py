"""A step whose logits were not finite, whatever they really were."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from workers.engine.core.step_input import StepOutput
from workers.engine.serving.executor import SampledStep


class Spoiled(NamedTuple):
    """Stands for a sampled step and says that none of its rows could choose a token."""

    step: SampledStep

    def wait(self) -> StepOutput:
        """Return the step's output, all rows failed."""
        output = self.step.wait()
        return replace(output, failed=[True] * len(output.failed))
