"""What one request forbids, favours and penalises, told anew for each token to be chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.engine.core.sampling_params import SamplingParams
from workers.engine.core.sequence_parts import TokenPenalties, TokenShifts
from workers.engine.sampling.bad_words import BadWords
from workers.engine.sampling.seen_tokens import SeenTokens

_FORBIDDEN = float("-inf")


class TokenRules:
    """The state behind `min_tokens`, `bad_words`, `logit_bias` and the penalties of one sequence."""

    __slots__ = ("_bad_words", "_bias", "_end_token_ids", "_output", "_params", "_seen")

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        *,
        end_token_ids: Sequence[int],
        bad_words: BadWords | None,
    ) -> None:
        """`end_token_ids` are those that would end the sequence, barred before `min_tokens`."""
        self._params = params = params.effective()
        self._end_token_ids = list(end_token_ids)
        self._bad_words = bad_words
        self._bias = TokenShifts(list(params.logit_bias or ()), list((params.logit_bias or {}).values()))
        # Only a repetition penalty looks at the prompt.
        penalised = prompt_token_ids if params.repetition_penalty != 1.0 else ()
        self._seen = SeenTokens(penalised) if params.has_penalties else None
        self._output: list[int] = []

    def append(self, token_id: int) -> None:
        """Take note of a generated token."""
        self._output.append(token_id)
        if self._seen is not None:
            self._seen.append(token_id)

    def shifts(self) -> TokenShifts | None:
        """Return what to add to the next token's logits."""
        barred = self._end_token_ids if len(self._output) < self._params.min_tokens else []
        if self._bad_words is not None:
            barred = barred + self._bad_words.barred_after(self._output)
        if not barred:
            return self._bias if self._bias.token_ids else None
        token_ids, values = self._bias
        return TokenShifts(token_ids + barred, values + [_FORBIDDEN] * len(barred))

    def penalties(self) -> TokenPenalties | None:
        """Return what the tokens seen so far lose."""
        if self._seen is None or not len(self._seen):
            return None
        params, counts = self._params, self._seen.counts
        factors = np.full(len(counts), params.repetition_penalty, dtype=np.float32)
        deductions = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        return TokenPenalties(self._seen.token_ids, factors, deductions.astype(np.float32))
