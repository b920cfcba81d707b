"""Decides when a sequence has ended and what its output then looks like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workers.engine.core.composition import describe
from workers.engine.core.errors import EngineError, NonFiniteLogits, NoTokenAllowed
from workers.engine.core.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    PositionLogprobs,
    RequestFailure,
    RequestOutput,
    TopLogprobs,
)
from workers.engine.core.sequence import SequenceState
from workers.engine.text.tokenizer import Tokenizer


class Ending(NamedTuple):
    """Why a sequence ended."""

    finish_reason: FinishReason
    stop_reason: int | str | None = None
    keeps_last_token: bool = False  # it belongs to the answer, although the sequence stops with it


class OutputProcessor:
    """Applies the checkpoint's end-of-sequence tokens and the request's own limits."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)

    def ending(self, sequence: SequenceState) -> Ending | None:
        """Look at the token just appended; return why the sequence ends with it, None if it goes on."""
        token_id, params = sequence.token_ids[-1], sequence.params
        if token_id in self._eos_token_ids and not params.ignore_eos:
            return Ending("stop")
        if params.stop_token_ids and token_id in params.stop_token_ids:
            return Ending("stop", token_id)
        if sequence.stop_checker is not None:
            is_armed = sequence.num_output_tokens > params.min_tokens
            if (stop := sequence.stop_checker.push(token_id, is_armed=is_armed)) is not None:
                return Ending("stop", stop)
        if sequence.grammar is not None and sequence.grammar.is_complete:
            return Ending("stop", keeps_last_token=True)
        if sequence.num_tokens >= sequence.max_total_tokens:
            return Ending("length")
        return None

    def output(
        self, sequence: SequenceState, ending: Ending, now_s: float, error: EngineError | None = None
    ) -> RequestOutput:
        """Return the final output of a sequence, as that of its request if it is the only one."""
        completion = CompletionOutput(
            index=sequence.index,
            text=self._text(sequence, ending),
            token_ids=sequence.output_token_ids,
            finish_reason=ending.finish_reason,
            stop_reason=ending.stop_reason,
            logprobs=self._logprobs(sequence.logprobs, sequence.params.logprobs),
            cumulative_logprob=_sum_of(sequence.logprobs),
        )
        return RequestOutput(
            request_id=sequence.request_id,
            prompt=sequence.prompt,
            prompt_token_ids=sequence.token_ids[: sequence.num_prompt_tokens],
            outputs=[completion],
            finished=True,
            lora_request=sequence.lora,
            metrics=sequence.metrics(now_s),
            error=None if error is None else RequestFailure(error.code, str(error), error.retryable),
            prompt_logprobs=self._prompt_logprobs(sequence),
            sampling=sequence.params.numbers,
            warnings=sequence.adapter_warnings,
        )

    def failed(self, sequence: SequenceState, now_s: float, error: EngineError) -> RequestOutput:
        """Return the final output of a sequence of which no more can be told than that it failed."""
        completion = CompletionOutput(index=sequence.index, text="", token_ids=[], finish_reason="error")
        return RequestOutput(
            request_id=sequence.request_id,
            prompt=sequence.prompt,
            prompt_token_ids=sequence.token_ids[: sequence.num_prompt_tokens],
            outputs=[completion],
            finished=True,
            lora_request=sequence.lora,
            metrics=sequence.metrics(now_s),
            error=RequestFailure(error.code, str(error), error.retryable),
        )

    def partial(self, sequence: SequenceState, ending: Ending | None, now_s: float) -> RequestOutput:
        """Return what a sequence that streams tells with the token just appended."""
        stream, checker = sequence.stream, sequence.stop_checker
        assert stream is not None, "a request that does not stream was asked for its stream"
        assert checker is not None, "a request that streams has its text watched"
        text = checker.text if ending is None else self._text(sequence, ending)
        num_chars = checker.num_certain_chars if ending is None else len(text)
        new_text, token_ids = stream.take(text, num_chars, sequence.token_ids)
        completion = CompletionOutput(
            index=sequence.index,
            text=new_text,
            token_ids=token_ids,
            finish_reason=None if ending is None else ending.finish_reason,
            stop_reason=None if ending is None else ending.stop_reason,
        )
        return RequestOutput(
            request_id=sequence.request_id,
            prompt=sequence.prompt,
            prompt_token_ids=stream.prompt_token_ids,
            outputs=[completion],
            finished=False,
            lora_request=sequence.lora,
            metrics=sequence.metrics(now_s),
            sampling=sequence.params.numbers,
        )

    def _prompt_logprobs(self, sequence: SequenceState) -> list[PositionLogprobs | None] | None:
        known = self._logprobs(sequence.prompt_logprobs, sequence.params.prompt_logprobs)
        return None if known is None else [None, *known]

    def _logprobs(
        self, found: list[TopLogprobs] | None, num_likeliest: int | None
    ) -> list[PositionLogprobs] | None:
        if found is None or num_likeliest is None:
            return None
        return [self._position(one, num_likeliest) for one in found]

    def _position(self, found: TopLogprobs, num_likeliest: int) -> PositionLogprobs:
        # A step may have looked at more than this request asked for.
        ranks = (found.rank, *range(1, num_likeliest + 1))
        return {
            token_id: Logprob(logprob, rank, self._tokenizer.decode([token_id], skip_special_tokens=False))
            for token_id, logprob, rank in zip(found.token_ids, found.logprobs, ranks, strict=False)
        }

    def _text(self, sequence: SequenceState, ending: Ending) -> str:
        params, token_ids = sequence.params, sequence.output_token_ids
        if ending.finish_reason == "stop":
            if isinstance(ending.stop_reason, str) and sequence.stop_checker is not None:
                return sequence.stop_checker.text
            if not params.include_stop_str_in_output and not ending.keeps_last_token:
                token_ids = token_ids[:-1]  # an end-of-sequence or stop token is no part of the answer
        return self._tokenizer.decode(token_ids, skip_special_tokens=params.skip_special_tokens)


def _sum_of(found: list[TopLogprobs] | None) -> float | None:
    return None if found is None else sum(one.logprobs[0] for one in found)


def why_failed(sequence: SequenceState, *, is_barred: bool) -> EngineError:
    """Return why no token could be chosen for a sequence; `is_barred`: its logits were sound."""
    if sequence.grammar is not None and sequence.grammar.error is not None:
        return sequence.grammar.error
    return no_token_allowed(sequence) if is_barred else non_finite_logits(sequence)


def non_finite_logits(sequence: SequenceState) -> NonFiniteLogits:
    """Return why a sequence failed whose logits are not finite."""
    return NonFiniteLogits(
        f"logits of request {sequence.request_id!r} ({describe(sequence.composition)}) are NaN or infinite "
        f"at position {sequence.num_tokens}; check the weights and the scale, or use dtype float32"
    )


def no_token_allowed(sequence: SequenceState) -> NoTokenAllowed:
    """Return why a sequence failed whose own limits left it no token."""
    return NoTokenAllowed(
        f"request {sequence.request_id!r} forbids every token at position {sequence.num_tokens}; "
        "relax its grammar, bad_words, logit_bias or min_tokens"
    )
