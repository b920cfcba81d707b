"""The engine's door for requests: text to tokens, limits checked, a `SequenceState` or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from workers.engine.core.composition import composition_of, describe
from workers.engine.core.errors import InvalidParams, InvalidPrompt, RequestError
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.core.sequence import SequenceState
from workers.engine.sampling.bad_words import BadWords, tokenize_bad_words
from workers.engine.sampling.sampler import derive_seed
from workers.engine.sampling.token_rules import TokenRules
from workers.engine.structured_output import GrammarCompiler
from workers.engine.text.chat_template import Message
from workers.engine.text.detokenizer import StopChecker
from workers.engine.text.tokenizer import Tokenizer

Prompt = str | list[int] | list[dict[str, Any]]
"""Text, token ids, or chat messages for the checkpoint's template."""


class InputProcessor:
    """Knows the limits of one engine and turns what fits them into sequences."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_model_len: int,
        max_loras: int,
        seed: int,
        eos_token_ids: Iterable[int],
        grammars: GrammarCompiler,
        defaults: SamplingDefaults,
    ) -> None:
        """`max_loras` is 0 if LoRA is off; `defaults` fill in what a request leaves unset."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._max_loras = max_loras
        self._seed = seed
        self._eos_token_ids = frozenset(eos_token_ids)
        self._grammars = grammars
        self._defaults = defaults

    def sequences(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        lora: AnyLoRA | None,
        *,
        arrival_time_s: float,
        cache_salt: str | None = None,
    ) -> list[SequenceState]:
        """Return a sequence for each completion, or raise the `RequestError` that says what is wrong."""
        params = params.effective(self._defaults)
        self._check_adapters(request_id, lora)
        if cache_salt is not None and not isinstance(cache_salt, str):
            raise InvalidParams(f"cache_salt is {cache_salt!r:.80}; give a string or None")
        text, token_ids = self._tokenize(prompt)
        self._check_tokens(token_ids)
        self._check_named_tokens("stop token id", params.stop_token_ids or ())
        self._check_named_tokens("logit_bias of token", params.logit_bias or ())
        bad_words, form = self._bad_words(params), params.structured_outputs
        seed = derive_seed(self._seed, request_id) if params.seed is None else params.seed
        return [
            SequenceState(
                request_id,
                text,
                token_ids,
                params,
                lora,
                index=index,
                # The first completion is the one that n=1 gives.
                seed=seed if index == 0 else derive_seed(seed, str(index)),
                max_total_tokens=min(len(token_ids) + params.max_tokens, self._max_model_len),
                stop_checker=self._stop_checker(params) if params.stop_strings or params.streams else None,
                arrival_time_s=arrival_time_s,
                cache_salt=cache_salt,
                rules=self._rules(params, token_ids, bad_words) if params.edits_logits else None,
                grammar=None if form is None else self._grammars.grammar(form),
            )
            for index in range(params.n)
        ]

    def _check_adapters(self, request_id: str, lora: AnyLoRA | None) -> None:
        if lora is not None and not isinstance(lora, AnyLoRA):
            raise RequestError(
                f"request {request_id!r} asks for {lora!r:.80}; give a LoRARequest, a LoRAMix or None"
            )
        composition = composition_of(lora)
        if composition and not self._max_loras:
            raise RequestError(
                f"request {request_id!r} asks for {describe(composition)}, but enable_lora is False; "
                "set it to True"
            )
        if len(composition) > self._max_loras:
            raise RequestError(
                f"request {request_id!r} asks for {len(composition)} adapters at once, but max_loras is "
                f"{self._max_loras}; raise it, or merge some of the adapters"
            )

    def _tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            if not prompt:  # its tokens need not be none: many tokenizers add one of their own
                raise InvalidPrompt("the prompt is empty; give at least one character")
            return prompt, self._tokenizer.encode(prompt)
        if not isinstance(prompt, list):
            raise InvalidPrompt(f"prompt is {type(prompt).__name__}; give text, token ids or chat messages")
        if prompt and all(isinstance(part, Mapping) for part in prompt):
            messages: list[Message] = [part for part in prompt if isinstance(part, Mapping)]
            return self._tokenizer.encode_messages(messages)
        token_ids = [part for part in prompt if isinstance(part, int) and not isinstance(part, bool)]
        if len(token_ids) != len(prompt):
            raise InvalidPrompt(
                "prompt mixes kinds; give text, token ids (integers) or chat messages (dicts)"
            )
        return None, token_ids

    def _check_tokens(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise InvalidPrompt("the prompt has no tokens; give at least one")
        if len(token_ids) >= self._max_model_len:
            raise InvalidPrompt(
                f"the prompt has {len(token_ids)} tokens and max_model_len is {self._max_model_len}, which "
                f"must also hold the answer; shorten the prompt to at most {self._max_model_len - 1} tokens"
            )
        if min(token_ids) < 0 or max(token_ids) >= self._vocab_size:
            bad = next(token for token in token_ids if not 0 <= token < self._vocab_size)
            raise InvalidPrompt(
                f"token id {bad} is not of this model; give ids from 0 to {self._vocab_size - 1}"
            )

    def _check_named_tokens(self, what: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if token_id >= self._vocab_size:
                raise InvalidParams(
                    f"{what} {token_id} is not of this model; give ids below {self._vocab_size}"
                )

    def _stop_checker(self, params: SamplingParams) -> StopChecker:
        return self._tokenizer.stop_checker(
            params.stop_strings,
            keeps_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
        )

    def _bad_words(self, params: SamplingParams) -> BadWords | None:
        words = tokenize_bad_words(params.bad_word_list, self._tokenizer.encode_bare)
        self._check_named_tokens("a bad word's token", chain.from_iterable(words))
        return BadWords(words) if words else None

    def _rules(
        self, params: SamplingParams, prompt_token_ids: list[int], bad_words: BadWords | None
    ) -> TokenRules:
        end_token_ids = sorted(self._eos_token_ids.union(params.stop_token_ids or ()))
        return TokenRules(params, prompt_token_ids, end_token_ids=end_token_ids, bad_words=bad_words)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts of a call that may have been given one alone."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], (int, dict)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def one_each(name: str, given: Any, num_prompts: int) -> list[Any]:
    """Return one value for each prompt, of a list or of one for all."""
    if not isinstance(given, (list, tuple)):
        return [given] * num_prompts
    if len(given) != num_prompts:
        raise InvalidParams(f"{len(given)} {name} for {num_prompts} prompts; give one for all, or one each")
    return list(given)
