"""Sees the logits of every token that an engine chooses, in the batch in which it chooses it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from workers.engine import LLMEngine
from workers.engine.core.step_input import ForwardInput, SamplingInput
from workers.engine.serving.executor import InFlightStep, SampledStep


class LogitTap:
    """Stands before an engine's builder and executor; `of` gives what a request's tokens were chosen from."""

    def __init__(self, engine: LLMEngine) -> None:
        self._builder, self._executor = engine._parts.builder, engine._parts.executor
        self.look_ahead = self._executor.look_ahead
        self.num_replayed_steps = 0
        self._sampled: list[str] = []
        self._rows: dict[str, list[Tensor]] = defaultdict(list)
        engine._parts = engine._parts._replace(builder=self, executor=self)  # type: ignore[arg-type]

    def build(self, schedule: Any) -> Any:
        """Build the first half of a step."""
        return self._builder.build(schedule)

    def build_sampling(self, spans: Any) -> Any:
        """Note whose tokens the step yields."""
        built = self._builder.build_sampling(spans)
        self._sampled = [span.sequence.request_id for span in built.sampled]
        return built

    def forward(self, step: ForwardInput) -> InFlightStep:
        """Run the layers."""
        return self._executor.forward(step)

    def sample(self, step: InFlightStep, sampling: SamplingInput) -> SampledStep:
        """Choose the tokens and keep a copy of their logits."""
        decoder = self._executor._decoder  # type: ignore[attr-defined]
        make = decoder.logits

        made: list[Tensor] = []

        def tapped(hidden: Any, rows: Tensor, segments: Any) -> Tensor:
            logits: Tensor = make(hidden, rows, segments)
            made.append(logits.clone())
            return logits

        decoder.logits = tapped
        try:
            result = self._executor.sample(step, sampling)
        finally:
            decoder.logits = make
        if sampling.num_rows:  # whose logits are made last, after those of prompts that are asked about
            for request_id, row in zip(self._sampled, made[-1], strict=False):
                self._rows[request_id].append(row)
        return result

    def of(self, request_id: str) -> Tensor:  # [num_tokens, vocab_size] float32
        """Return the logits behind each token of a request."""
        return torch.stack(self._rows[request_id])
