"""Runs steps on this process's device: the seam behind which other devices and ranks can stand."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from workers.engine.core.outputs import TopLogprobs
from workers.engine.core.step_input import PromptRows, StepInput, StepOutput
from workers.engine.kv.kv_cache import KVCache
from workers.engine.model.decoder import Decoder
from workers.engine.sampling.logprobs import top_logprobs
from workers.engine.sampling.sampler import sample


class Executor(Protocol):
    """Anything that turns a step's description into its tokens."""

    def execute(self, step: StepInput) -> StepOutput:
        """Run one step to its end."""
        ...


class LocalExecutor:
    """The decoder and its cache in this process."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder = decoder
        self._cache = cache

    def execute(self, step: StepInput) -> StepOutput:
        """Run one step; the cache keeps what later steps need."""
        with torch.inference_mode():
            if step.fresh_blocks is not None:
                self._cache.zero(step.fresh_blocks)
            prompt_logprobs: list[list[TopLogprobs]] = []

            def read_prompt(logits: Tensor, prompt: PromptRows) -> None:
                prompt_logprobs.append(top_logprobs(logits, prompt.token_ids, prompt.num_likeliest))

            logits = self._decoder.forward(step, self._cache, read_prompt)
            output = StepOutput([], []) if step.sampling is None else sample(logits, step.sampling)
            output.prompt_logprobs.extend(prompt_logprobs)
            return output
