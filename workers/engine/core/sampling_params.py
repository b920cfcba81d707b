"""How one request wants its tokens chosen, refused with value and remedy when it cannot be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum

from workers.engine.core.errors import InvalidParams
from workers.engine.core.param_checks import require_flag, require_int, require_number, require_strings
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.engine.core.structured_outputs import StructuredOutputsParams

_LARGEST_TOP_K = 2**31 - 1
"""As jobs have it: beyond any vocabulary, and within the integers of a batch."""

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1000
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARS = 1000
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20
MAX_N = 128
_MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = 100.0
_PENALTY_FACTORS = (0.01, 100.0)
"""Beyond these a logit would leave the range of float32 or lose all meaning."""
_MAY_BE_UNSET = (
    ("temperature", 0.0, MAX_TEMPERATURE),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", *_PENALTY_FACTORS),
)
_NO_DEFAULTS = SamplingDefaults()


class RequestOutputKind(Enum):
    """What `step` tells of a request before it has ended; the output that ends it always tells all."""

    CUMULATIVE = 0
    """After each token all there is so far."""
    DELTA = 1
    """After each token what is new."""
    FINAL_ONLY = 2
    """Nothing."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters named as in vLLM; `docs/generation.md` tells what each does, and in which order.

    `temperature=0` is greedy, `top_k=0` or -1 means every token. What is None of the fields of
    `SamplingDefaults` is left to the engine's defaults, which a checkpoint may state.
    """

    max_tokens: int = 16
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    n: int = 1
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    logit_bias: Mapping[int, float] | None = None
    bad_words: str | Sequence[str] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        self._require_counts()
        self._require_likelihoods()
        self._require_biases()
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            require_flag(name, getattr(self, name))
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputsParams):
            raise InvalidParams(f"structured_outputs is {form!r:.80}; give StructuredOutputsParams")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise InvalidParams(f"output_kind is {self.output_kind!r:.80}; give a RequestOutputKind")
        require_strings("stop string", self.stop_strings, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS)
        require_strings("bad word", self.bad_word_list, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def streams(self) -> bool:
        """Whether anything is told before the end."""
        return self.output_kind is not RequestOutputKind.FINAL_ONLY

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        return _strings(self.stop)

    @property
    def bad_word_list(self) -> tuple[str, ...]:
        """The bad words as a tuple, whatever form they were given in."""
        return _strings(self.bad_words)

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that were seen before are made less or more likely."""
        repetition = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        return (repetition, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def edits_logits(self) -> bool:
        """Whether more than the temperature stands between the model's logits and the choice."""
        return bool(self.has_penalties or self.logit_bias or self.bad_words or self.min_tokens)

    def effective(self, defaults: SamplingDefaults = _NO_DEFAULTS) -> EffectiveParams:
        """Return these parameters with what they leave unset from `defaults`."""
        if isinstance(self, EffectiveParams):
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        unset = {name: value for name, value in asdict(defaults).items() if values[name] is None}
        return EffectiveParams(**values | unset)

    def _require_counts(self) -> None:
        require_int("max_tokens", self.max_tokens, 1, None)
        require_int("min_tokens", self.min_tokens, 0, None)
        if self.min_tokens > self.max_tokens:
            raise InvalidParams(
                f"min_tokens is {self.min_tokens}, above max_tokens ({self.max_tokens}); "
                "lower the first or raise the second"
            )
        require_int("n", self.n, 1, MAX_N)
        if self.n > 1 and self.is_greedy:
            raise InvalidParams(f"n is {self.n} with temperature 0, so that all would be equal; give n=1")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                require_int(name, getattr(self, name), 0, MAX_LOGPROBS)
        if self.seed is not None:
            require_int("seed", self.seed, 0, _MAX_SEED)
        for token_id in self.stop_token_ids or ():
            require_int("stop_token_ids", token_id, 0, None)

    def _require_likelihoods(self) -> None:
        for name, low, high in _MAY_BE_UNSET:
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), low, high)
        if self.top_p == 0.0:
            raise InvalidParams("top_p is 0; give a number in (0, 1], or temperature=0 for greedy decoding")
        if self.top_k is not None:
            require_int("top_k", self.top_k, -1, _LARGEST_TOP_K)
        require_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        require_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)

    def _require_biases(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidParams(
                f"logit_bias is {self.logit_bias!r:.80}; give a dict of token ids to numbers between "
                "-100 and 100"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidParams(
                f"logit_bias has {len(self.logit_bias)} entries; give at most {MAX_LOGIT_BIASES}"
            )
        for token_id, bias in self.logit_bias.items():
            require_int("a token id of logit_bias", token_id, 0, None)
            require_number(f"logit_bias of token {token_id}", bias, -100.0, 100.0)


@dataclass(frozen=True, slots=True)
class EffectiveParams(SamplingParams):
    """Parameters of which none is unset: what a sequence runs with."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def numbers(self) -> dict[str, float]:
        """What chooses the tokens, by parameter."""
        return {name: getattr(self, name) for name in _NUMBERS}


_NUMBERS = (
    *(field.name for field in fields(SamplingDefaults)),
    "presence_penalty",
    "frequency_penalty",
)


def _strings(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
