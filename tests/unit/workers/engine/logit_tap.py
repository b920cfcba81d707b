"""Sees the logits of every token that an engine chooses, in the batch in which it chooses it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from workers.engine import LLMEngine
from workers.engine.core.step_input import StepInput, StepOutput


class LogitTap:
    """Stands before an engine's executor; `of` gives what a request's tokens were chosen from."""

    def __init__(self, engine: LLMEngine) -> None:
        self._builder, self._executor = engine._parts.builder, engine._parts.executor
        self._sampled: list[str] = []
        self._rows: dict[str, list[Tensor]] = defaultdict(list)
        engine._parts = engine._parts._replace(builder=self, executor=self)  # type: ignore[arg-type]

    def build(self, schedule: Any) -> Any:
        """Note whose tokens the step yields."""
        built = self._builder.build(schedule)
        self._sampled = [sequence.request_id for sequence in built.sampled]
        return built

    def execute(self, step: StepInput) -> StepOutput:
        """Run the step and keep a copy of its logits."""
        decoder = self._executor._decoder  # type: ignore[attr-defined]
        forward = decoder.forward

        def tapped(*arguments: Any) -> Tensor:
            logits: Tensor = forward(*arguments)
            for request_id, row in zip(self._sampled, logits, strict=False):
                self._rows[request_id].append(row.clone())
            return logits

        decoder.forward = tapped
        try:
            return self._executor.execute(step)
        finally:
            decoder.forward = forward

    def of(self, request_id: str) -> Tensor:  # [num_tokens, vocab_size] float32
        """Return the logits behind each token of a request."""
        return torch.stack(self._rows[request_id])
