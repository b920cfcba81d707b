"""Log-probabilities of answers and prompts are transformers' own, however the engine computed them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from workers.engine import LLMEngine, LoRARequest, RequestOutput, SamplingParams
from workers.engine.sampling.logprobs import token_logprobs

pytestmark = pytest.mark.numeric

MakeEngine = Callable[..., LLMEngine]


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **settings})  # type: ignore[arg-type]


def expected(llama: LlamaForCausalLM, token_ids: list[int]) -> Tensor:  # [num_tokens, vocab_size]
    with torch.no_grad():
        return llama(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)


def assert_positions(found: list, token_ids: list[int], logprobs: Tensor, num_likeliest: int) -> None:
    """Every entry is the token and the most likely ones, each with its log-probability and rank."""
    assert len(found) == len(token_ids) == len(logprobs)
    for entry, token_id, row in zip(found, token_ids, logprobs, strict=True):
        likeliest = row.argsort(descending=True)[:num_likeliest].tolist()
        assert entry is not None
        assert list(entry) == list(dict.fromkeys([token_id, *likeliest]))
        for one, value in entry.items():
            assert value.logprob == pytest.approx(float(row[one]), abs=1e-4)
            assert value.rank == int((row >= row[one]).sum())


def assert_answer(output: RequestOutput, llama: LlamaForCausalLM, num_likeliest: int) -> None:
    (completion,) = output.outputs
    prompt = output.prompt_token_ids
    logprobs = expected(llama, prompt + completion.token_ids)[len(prompt) - 1 : -1]
    assert completion.logprobs is not None
    assert_positions(completion.logprobs, completion.token_ids, logprobs, num_likeliest)
    own = logprobs.gather(1, torch.tensor(completion.token_ids).unsqueeze(1))
    assert completion.cumulative_logprob == pytest.approx(float(own.sum()), abs=1e-3)


def assert_prompt(output: RequestOutput, llama: LlamaForCausalLM, num_likeliest: int) -> None:
    prompt = output.prompt_token_ids
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert_positions(output.prompt_logprobs[1:], prompt[1:], expected(llama, prompt)[:-1], num_likeliest)


def test_rows_give_their_token_the_likeliest_and_a_rank() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.1, 0.3]])) + 5.0

    first, second = token_logprobs(logits, torch.tensor([1, 0]), num_likeliest=2).read()

    assert (first.token_ids, first.rank) == ([1, 2, 1], 2)
    assert (second.token_ids, second.rank) == ([0, 0, 2], 1)
    assert torch.tensor(first.logprobs).exp().tolist() == pytest.approx([0.2, 0.7, 0.2])


def test_answers_of_a_mixed_batch_have_the_model_s_own_logprobs(
    make_engine: MakeEngine, prompts: list[list[int]], llama: LlamaForCausalLM
) -> None:
    asked = [
        params(logprobs=3),
        params(),
        params(logprobs=0),
        params(logprobs=5, temperature=1.5, seed=1, top_p=0.8),
        params(logprobs=20, repetition_penalty=1.5, logit_bias={40: 60.0}),
    ]

    outputs = make_engine().generate(prompts[:5], asked)

    assert (outputs[1].outputs[0].logprobs, outputs[1].outputs[0].cumulative_logprob) == (None, None)
    for index, num_likeliest in [(0, 3), (2, 0), (3, 5), (4, 20)]:
        assert_answer(outputs[index], llama, num_likeliest)
    assert 40 in outputs[4].outputs[0].token_ids  # unlikely to the model, and shown as such


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_seqs": 4, "max_num_batched_tokens": 7}, {"max_model_len": 128, "num_kv_blocks": 12}],
    ids=["whole", "in chunks", "preempted"],
)
def test_prompts_have_the_model_s_own_logprobs(
    make_engine: MakeEngine,
    prompts: list[list[int]],
    llama: LlamaForCausalLM,
    settings: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.engine.scheduling.prompt_rows.MAX_LOGITS", 259 * 10)  # pieces of ten rows
    engine = make_engine(**settings)
    asked = params(prompt_logprobs=2, logprobs=1, max_tokens=24)

    outputs = engine.generate(prompts, asked)

    for output in outputs:
        assert_prompt(output, llama, 2)
        assert_answer(output, llama, 1)
    assert (engine.stats().num_preemptions > 0) == ("num_kv_blocks" in settings)


def test_a_cached_prefix_is_computed_again_where_its_logprobs_are_wanted(
    make_engine: MakeEngine, prompts: list[list[int]], llama: LlamaForCausalLM
) -> None:
    engine = make_engine()
    engine.generate(prompts[7], params())

    cached, asking = engine.generate([prompts[7]] * 2, [params(), params(prompt_logprobs=1)])

    assert cached.metrics.num_cached_tokens > 0
    assert asking.metrics.num_cached_tokens == 0
    assert_prompt(asking, llama, 1)
    assert cached.prompt_logprobs is None


def test_prompt_and_answer_agree_under_an_adapter(
    make_engine: MakeEngine,
    prompts: list[list[int]],
    adapters: dict[str, LoRARequest],
    llama: LlamaForCausalLM,
) -> None:
    engine = make_engine(enable_lora=True, max_lora_rank=16)

    base, adapted = engine.generate(
        [prompts[3]] * 2, params(prompt_logprobs=0, max_tokens=1), [None, adapters["everything"]]
    )
    alone = engine.generate(
        [prompts[3][:9]],
        params(logprobs=0, max_tokens=1, logit_bias={prompts[3][9]: 100.0}),
        adapters["everything"],
    )[0]

    assert_prompt(base, llama, 0)
    assert adapted.prompt_logprobs is not None
    assert alone.outputs[0].logprobs is not None
    there = adapted.prompt_logprobs[9]
    assert there is not None
    ninth = prompts[3][9]
    assert alone.outputs[0].logprobs[0][ninth].logprob == pytest.approx(there[ninth].logprob, abs=1e-4)
    engine.close()


def test_only_the_first_of_several_completions_reads_the_prompt(
    make_engine: MakeEngine, prompts: list[list[int]], llama: LlamaForCausalLM
) -> None:
    asked = params(n=3, temperature=1.0, seed=2, prompt_logprobs=1, logprobs=1)

    (output,) = make_engine().generate(prompts[2], asked)

    assert_prompt(output, llama, 1)
    assert all(completion.logprobs is not None for completion in output.outputs)
    assert [len(completion.logprobs or []) for completion in output.outputs] == [8, 8, 8]


def test_a_prompt_of_one_token_has_nothing_to_tell(make_engine: MakeEngine) -> None:
    (output,) = make_engine().generate([[50]], params(prompt_logprobs=3))

    assert output.prompt_logprobs == [None]


def test_tokens_are_shown_as_text(make_engine: MakeEngine) -> None:
    (output,) = make_engine().generate(
        [[3 + ord("a") - 33]], params(logprobs=0, logit_bias={1: 100.0}, max_tokens=1)
    )

    (entry,) = output.outputs[0].logprobs or []
    assert entry[1].decoded_token == "</s>"
