"""What a request's parameters do to its text, in a running engine and against transformers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, RequestOutput, SamplingParams
from workers.engine.core.errors import InvalidParams

pytestmark = [pytest.mark.numeric, BOTH]

MakeEngine = Callable[..., LLMEngine]
EOS_ID, PAD_ID = 1, 2
A_ID, B_ID, C_ID = (3 + ord(letter) - ord("!") for letter in "abc")

LETTERS = {
    "temperature": 15.0,
    "seed": 5,
    "min_p": 0.02,
    "logit_bias": dict.fromkeys((A_ID, B_ID, C_ID), 99.0),
}
"""Text of three letters, each about as likely as the others."""


def tokens(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


def params(max_tokens: int = 24, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **({"temperature": 0.0, "ignore_eos": True} | settings))


def next_logits(llama: LlamaForCausalLM, token_ids: list[int]) -> Tensor:  # [vocab_size] float64
    with torch.no_grad():
        return llama(torch.tensor([token_ids])).logits[0, -1].double()


def test_a_repetition_penalty_gives_transformers_tokens(
    make_engine: MakeEngine, prompts: list[list[int]], llama: LlamaForCausalLM
) -> None:
    outputs = make_engine().generate(prompts[:6], params(repetition_penalty=1.4))

    for prompt, output in zip(prompts[:6], outputs, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            expected = llama.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=24,
                repetition_penalty=1.4,
                eos_token_id=None,
                pad_token_id=PAD_ID,
            )
        assert tokens(output) == expected[0, len(prompt) :].tolist()


def test_presence_and_frequency_penalties_are_a_direct_computation(
    make_engine: MakeEngine, prompts: list[list[int]], llama: LlamaForCausalLM
) -> None:
    prompt, presence, frequency = prompts[0], 1.5, 0.8
    expected: list[int] = []
    for _ in range(20):
        logits = next_logits(llama, prompt + expected)
        for token_id, count in Counter(expected).items():
            logits[token_id] -= presence + frequency * count
        expected.append(int(logits.argmax()))

    penalised = params(20, presence_penalty=presence, frequency_penalty=frequency)
    outputs = make_engine().generate([prompts[1], prompt], [params(20), penalised])

    assert tokens(outputs[1]) == expected
    assert expected != tokens(make_engine().generate(prompt, params(20))[0])


def test_first_tokens_are_distributed_as_a_direct_computation_says(
    make_engine: MakeEngine, llama: LlamaForCausalLM
) -> None:
    prompt, num_draws = [50, 60, 70, 60], 2_000
    logits = next_logits(llama, prompt)
    bias = {int(logits.argsort()[-9]): 4.0, int(logits.argmax()): -2.0}
    for token_id, value in bias.items():
        logits[token_id] += value
    seen = torch.tensor(sorted(set(prompt)))
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.2, logits[seen] * 1.2)
    expected = torch.softmax(logits / 2.5, dim=-1)
    expected[expected < 0.02 * expected.max()] = 0.0
    in_order = expected.argsort(descending=True)
    expected /= expected.sum()
    expected[in_order[expected[in_order].cumsum(0) - expected[in_order] >= 0.95]] = 0.0
    expected /= expected.sum()

    asked = [
        params(1, temperature=2.5, top_p=0.95, min_p=0.02, repetition_penalty=1.2, logit_bias=bias, seed=seed)
        for seed in range(num_draws)
    ]
    drawn = [tokens(output)[0] for output in make_engine().generate([prompt] * num_draws, asked)]

    counts = torch.bincount(torch.tensor(drawn), minlength=len(expected)).double()
    likely = expected > 0
    assert counts[~likely].sum() == 0
    assert likely.sum() >= 8
    chi_square = ((counts - num_draws * expected)[likely] ** 2 / (num_draws * expected[likely])).sum()
    degrees = int(likely.sum()) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


def test_a_bias_of_a_hundred_decides_both_ways(make_engine: MakeEngine, prompts: list[list[int]]) -> None:
    engine = make_engine()
    favourite = tokens(engine.generate(prompts[0], params(1))[0])[0]

    forced, forbidden = engine.generate(
        [prompts[0]] * 2,
        [
            params(6, logit_bias={A_ID: 100.0}),
            params(60, temperature=2.0, seed=1, logit_bias={favourite: -100.0}),
        ],
    )

    assert tokens(forced) == [A_ID] * 6
    assert favourite not in tokens(forbidden)


def test_bad_words_of_several_tokens_are_never_completed(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    free = params(120, **LETTERS)
    bound = params(120, bad_words=["ab", "bca", "cc"], **LETTERS)

    texts = [output.outputs[0].text for output in engine.generate([prompts[0]] * 2, [free, bound])]

    assert set(texts[0]) == set(texts[1]) == set("abc")
    assert all(word in texts[0] for word in ("ab", "bca", "cc"))
    assert not any(word in texts[1] for word in ("ab", "bca", "cc"))


@pytest.mark.parametrize("ends", [{"ignore_eos": False}, {"stop_token_ids": [EOS_ID]}])
def test_nothing_ends_a_text_before_min_tokens(
    make_engine: MakeEngine, prompts: list[list[int]], ends: dict[str, object]
) -> None:
    wants_to_end: dict[str, Any] = {"logit_bias": {EOS_ID: 100.0}, **ends}

    at_once, later = make_engine().generate(
        [prompts[0]] * 2, [params(**wants_to_end), params(min_tokens=7, **wants_to_end)]
    )

    assert tokens(at_once) == [EOS_ID]
    assert tokens(later).index(EOS_ID) == len(tokens(later)) - 1 == 7
    assert later.outputs[0].finish_reason == "stop"


def test_a_stop_string_is_cut_off_or_kept_and_waits_for_min_tokens(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    whole = engine.generate(prompts[0], params(120, **LETTERS))[0].outputs[0].text
    first, second = whole.index("bca"), whole.index("bca", whole.index("bca") + 1)

    cut, kept, late = engine.generate(
        [prompts[0]] * 3,
        [
            params(120, stop="bca", **LETTERS),
            params(120, stop="bca", include_stop_str_in_output=True, **LETTERS),
            params(120, stop="bca", min_tokens=first + 3, **LETTERS),
        ],
    )

    assert [cut.outputs[0].text, kept.outputs[0].text] == [whole[:first], whole[: first + 3]]
    assert tokens(cut) == tokens(kept)
    assert len(tokens(cut)) == first + 3
    assert late.outputs[0].text == whole[:second]
    assert {one.outputs[0].stop_reason for one in (cut, kept, late)} == {"bca"}


def test_a_stop_token_is_no_part_of_the_text_unless_asked_for(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    forced: dict[str, Any] = {"logit_bias": {A_ID: 100.0}, "stop_token_ids": [A_ID]}

    without, with_it = make_engine().generate(
        [prompts[0]] * 2, [params(**forced), params(include_stop_str_in_output=True, **forced)]
    )

    assert [without.outputs[0].text, with_it.outputs[0].text] == ["", "a"]
    assert tokens(without) == tokens(with_it) == [A_ID]
    assert without.outputs[0].stop_reason == A_ID


def test_special_tokens_are_shown_where_asked_for(make_engine: MakeEngine, prompts: list[list[int]]) -> None:
    forced = {"logit_bias": {PAD_ID: 100.0}}

    hidden, shown = make_engine().generate(
        [prompts[0]] * 2, [params(2, **forced), params(2, skip_special_tokens=False, **forced)]
    )

    assert [hidden.outputs[0].text, shown.outputs[0].text] == ["", "<pad><pad>"]


def test_a_request_left_without_a_token_fails_alone(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    impossible = params(min_tokens=3, stop_token_ids=list(range(259)))

    failed, fine = engine.generate([prompts[0], prompts[1]], [impossible, params(4)])

    assert failed.error is not None
    assert failed.error.code == "no_token_allowed"
    assert "forbids every token at position 5; relax" in failed.error.message
    assert len(tokens(fine)) == 4
    engine.check_integrity()


SETTINGS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.2, "seed": 1, "min_p": 0.05},
    {"temperature": 0.9, "seed": 2, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"temperature": 1.0, "seed": 3, "logit_bias": {40: 5.0, 41: -100.0}, "top_k": 30},
    {"temperature": 1.5, "seed": 4, "bad_words": ["a", "bc"], "min_tokens": 5, "ignore_eos": False},
    {"temperature": 0.0, "presence_penalty": 1.0},
]


def test_no_parameter_of_one_request_reaches_another(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    asked = [params(24, **settings) for settings in SETTINGS * 2]
    together = [tokens(one) for one in make_engine().generate(prompts, asked)]

    engine = make_engine()
    alone = [tokens(engine.generate(prompt, one)[0]) for prompt, one in zip(prompts, asked, strict=True)]
    backwards = [tokens(one) for one in engine.generate(prompts[::-1], asked[::-1])][::-1]
    tight = make_engine(max_model_len=128, num_kv_blocks=12)
    preempted = [tokens(one) for one in tight.generate(prompts, asked)]

    assert alone == backwards == preempted == together
    assert tight.stats().num_preemptions > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_bias": {259: 1.0}}, "logit_bias of token 259 is not of this model; give ids below 259"),
        ({"stop_token_ids": [300]}, "stop token id 300 is not of this model"),
        ({"bad_words": ["\ud800"]}, "cannot be tokenised"),
        ({"bad_words": [" "]}, "bad word ' ' has no tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    make_engine: MakeEngine, prompts: list[list[int]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((InvalidParams, ValueError), match=message):
        make_engine().add_request("bad", prompts[0], params(**settings))
