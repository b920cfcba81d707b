"""Runs steps on this process's device: the seam behind which other devices and ranks can stand."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kernels.sampling.draw import Draw
from workers.engine.core.step_input import ForwardInput, SamplingInput, StepOutput
from workers.engine.kv.kv_cache import KVCache
from workers.engine.model.decoder import Decoder, HiddenStates
from workers.engine.sampling.logprobs import TokenLogprobs, token_logprobs
from workers.engine.sampling.sampler import ChosenTokens, choose
from workers.engine.serving.compute_threads import ComputeThreads


class InFlightStep(Protocol):
    """A step whose forward pass is launched; only the executor that launched it knows what is inside."""


class SampledStep(Protocol):
    """A step whose tokens are being chosen."""

    def wait(self) -> StepOutput:
        """Return what the step yields, once it is there."""
        ...


class Executor(Protocol):
    """Anything that turns a step's description into its tokens, in two phases, steps in order.

    Each `forward` is followed by its `sample` before the next one. With `look_ahead` 1 launches return before
    the work is done: the next forward pass is launched before the host waits for these tokens, which it then
    takes from the device (`ForwardInput.carried`). With 0 the host waits first.
    """

    look_ahead: int  # 0 or 1

    @property
    def num_replayed_steps(self) -> int:
        """Steps whose forward pass was launched as one captured graph."""
        ...

    def forward(self, step: ForwardInput) -> InFlightStep:
        """Launch the layers over all rows of a step; the cache keeps what later steps need."""
        ...

    def sample(self, step: InFlightStep, sampling: SamplingInput) -> SampledStep:
        """Launch what follows the layers: the head over the rows that are asked about, and their choice."""
        ...


class LocalExecutor:
    """The decoder and its cache in this process; what it launches is done at once, but for reading it."""

    num_replayed_steps = 0

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        draw: Draw,
        *,
        look_ahead: int = 0,
        threads: ComputeThreads | None = None,
    ) -> None:
        """`look_ahead` 1 is for tests: this device computes while the host waits, so it gains nothing.

        Without `threads` their number stays as it is.
        """
        self._decoder = decoder
        self._cache = cache
        self._draw = draw
        self.look_ahead = look_ahead
        self._threads = threads
        self._latest: ChosenTokens | None = None

    def forward(self, step: ForwardInput) -> HiddenStates:
        """Run the layers."""
        if self._threads is not None:
            self._threads.adjust()
        with torch.inference_mode():
            if step.fresh_blocks is not None:
                self._cache.zero(step.fresh_blocks)
            return self._decoder.forward(self._with_carried(step), self._cache)

    def sample(self, step: InFlightStep, sampling: SamplingInput) -> StepResults:
        """Run the head and choose the tokens."""
        with torch.inference_mode():
            results = sample_rows(self._decoder, step, sampling, self._draw)
            self._latest = results.chosen
            return results

    def _with_carried(self, step: ForwardInput) -> ForwardInput:
        if step.carried is None:
            return step
        assert self._latest is not None, "a step goes on with tokens of one that chose none"
        carried: Tensor = self._latest.token_ids.index_select(0, step.carried.places)
        return replace(step, token_ids=step.token_ids.index_copy(0, step.carried.rows, carried))


class StepResults(NamedTuple):
    """What a step yields, where the logits are or copied to the host."""

    chosen: ChosenTokens | None  # None: nothing was sampled
    prompts: tuple[TokenLogprobs, ...]

    def wait(self) -> StepOutput:
        """Return them as plain values; the tensors must be on the host."""
        output = StepOutput([], []) if self.chosen is None else self.chosen.read()
        output.prompt_logprobs.extend(prompt.read() for prompt in self.prompts)
        return output


def sample_rows(decoder: Decoder, step: InFlightStep, sampling: SamplingInput, draw: Draw) -> StepResults:
    """Launch what follows the layers; the tensors of `sampling` are where those of the step are."""
    assert isinstance(step, HiddenStates), "a step was sampled by another executor than launched it"
    prompts = tuple(
        token_logprobs(
            decoder.logits(step, prompt.rows, prompt.segments)[: prompt.num_rows],
            prompt.token_ids,
            prompt.num_likeliest,
        )
        for prompt in sampling.prompts
    )
    if not sampling.num_rows:
        return StepResults(None, prompts)
    logits = decoder.logits(step, sampling.rows, sampling.segments)
    return StepResults(choose(logits[: sampling.num_rows], sampling, draw), prompts)
