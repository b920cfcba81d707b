"""What a request that streams has been told so far."""

from __future__ import annotations

from workers.engine.core.sampling_params import RequestOutputKind


class OutputStream:
    """How far the text and the tokens of one completion have been given out."""

    __slots__ = ("_is_delta", "_num_chars", "_num_tokens", "prompt_token_ids")

    def __init__(self, prompt_token_ids: list[int], output_kind: RequestOutputKind) -> None:
        self.prompt_token_ids = list(prompt_token_ids)  # one copy for all outputs
        self._is_delta = output_kind is RequestOutputKind.DELTA
        self._num_chars = 0
        self._num_tokens = len(prompt_token_ids)

    def take(self, text: str, num_chars: int, token_ids: list[int]) -> tuple[str, list[int]]:
        """Return what to tell now of the first `num_chars` of `text` and of the tokens after the prompt."""
        told_chars, told_tokens = self._num_chars, self._num_tokens
        if not self._is_delta:
            return text[:num_chars], token_ids[told_tokens:]
        self._num_chars, self._num_tokens = max(told_chars, num_chars), len(token_ids)
        return text[told_chars:num_chars], token_ids[told_tokens:]
