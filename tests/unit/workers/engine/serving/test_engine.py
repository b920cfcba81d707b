"""The engine against transformers: whatever the batch looks like, a request's tokens are its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kernels.cpu import library
from tests.unit.products import assert_same_logits
from tests.unit.workers.engine.logit_tap import LogitTap
from tests.unit.workers.engine.look_ahead import BOTH
from workers.engine import LLMEngine, RequestOutput, SamplingParams
from workers.engine.core.errors import InvalidParams, InvalidPrompt, RequestError

pytestmark = [pytest.mark.numeric, BOTH]

Greedy = Callable[[list[int], int], list[int]]
MakeEngine = Callable[..., LLMEngine]
GREEDY_24 = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


def token_lists(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_greedy_tokens_of_a_mixed_batch_equal_transformers(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    outputs = make_engine().generate(prompts, GREEDY_24)

    assert token_lists(outputs) == [greedy(prompt, 24) for prompt in prompts]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


def test_a_request_alone_gives_what_it_gives_in_a_batch(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    engine = make_engine()

    alone = [engine.generate(prompt, GREEDY_24)[0] for prompt in prompts[:4]]

    assert token_lists(alone) == [greedy(prompt, 24) for prompt in prompts[:4]]


def test_without_compiled_kernels_the_engine_says_so_and_gives_the_same_tokens(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    assert make_engine().info.cpu_kernels == library.level()

    with library.use_level("torch"):
        engine = make_engine()
        outputs = engine.generate(prompts, GREEDY_24)

    assert engine.info.cpu_kernels == "torch"
    assert token_lists(outputs) == [greedy(prompt, 24) for prompt in prompts]


@pytest.mark.parametrize("budget", [4, 7, 32])
def test_chunked_prefill_gives_the_same_tokens(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy, budget: int
) -> None:
    engine = make_engine(max_num_seqs=4, max_num_batched_tokens=budget)

    assert token_lists(engine.generate(prompts, GREEDY_24)) == [greedy(prompt, 24) for prompt in prompts]


def test_preemption_gives_the_same_tokens(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    engine = make_engine(max_model_len=128, num_kv_blocks=12)

    outputs = engine.generate(prompts, GREEDY_24)

    assert engine.stats().num_preemptions > 0
    assert token_lists(outputs) == [greedy(prompt, 24) for prompt in prompts]


def test_one_sequence_s_worth_of_blocks_serves_everybody_in_turn(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    engine = make_engine(max_model_len=128, num_kv_blocks=8, max_num_batched_tokens=40)

    outputs = engine.generate(prompts * 2, GREEDY_24)

    assert token_lists(outputs) == [greedy(prompt, 24) for prompt in prompts] * 2
    engine.check_integrity()
    assert engine.stats().num_free_kv_blocks == 8


def test_more_requests_than_seats_come_back_in_order(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    params = [SamplingParams(max_tokens=1 + index, temperature=0.0, ignore_eos=True) for index in range(12)]

    outputs = make_engine(max_num_seqs=3).generate(prompts, params)

    assert token_lists(outputs) == [greedy(prompt, 1 + index) for index, prompt in enumerate(prompts)]
    assert [output.prompt_token_ids for output in outputs] == prompts


def test_bfloat16_generates_and_agrees_with_itself_alone_and_batched(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine(dtype="bfloat16")
    tap = LogitTap(engine)

    batched = engine.generate(prompts, GREEDY_24)
    (alone,) = engine.generate(prompts[0], GREEDY_24)

    assert [len(tokens) for tokens in token_lists(batched)] == [24] * len(prompts)
    assert_same_logits(tap.of(batched[0].request_id), tap.of(alone.request_id), "bfloat16")
    for output in (*batched, alone):
        assert output.outputs[0].token_ids == tap.of(output.request_id).argmax(dim=-1).tolist()


def test_seeded_sampling_is_independent_of_neighbours(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    mixed = [
        SamplingParams(max_tokens=16, temperature=0.9, top_p=0.9, seed=11, ignore_eos=True),
        SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=16, temperature=1.5, top_k=20, seed=12, ignore_eos=True),
        SamplingParams(max_tokens=16, temperature=0.7, seed=13, ignore_eos=True),
    ]

    together = token_lists(engine.generate(prompts[:4], mixed))
    alone = [
        token_lists(engine.generate(prompt, params))[0]
        for prompt, params in zip(prompts[:4], mixed, strict=True)
    ]

    assert together == alone


def test_seeds_survive_preemption_and_different_seeds_differ(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    params = [
        SamplingParams(max_tokens=24, temperature=1.0, seed=seed, ignore_eos=True)
        for seed in range(len(prompts))
    ]

    roomy = token_lists(make_engine().generate(prompts, params))
    tight = make_engine(max_model_len=128, num_kv_blocks=12)

    assert token_lists(tight.generate(prompts, params)) == roomy
    assert tight.stats().num_preemptions > 0
    same_prompt = token_lists(make_engine().generate([prompts[0]] * 12, params))
    assert len({tuple(tokens) for tokens in same_prompt}) == 12


def test_generation_ends_at_an_end_of_sequence_token(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy
) -> None:
    expected = greedy(prompts[0], 24)
    params = SamplingParams(max_tokens=24, temperature=0.0, stop_token_ids=[expected[5]], ignore_eos=True)

    completion = make_engine().generate(prompts[0], params)[0].outputs[0]

    assert completion.token_ids == expected[: expected.index(expected[5]) + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", expected[5])


def test_generation_ends_before_a_stop_string(make_engine: MakeEngine, prompts: list[list[int]]) -> None:
    engine = make_engine()
    whole = engine.generate(prompts[3], GREEDY_24)[0].outputs[0].text
    stop = whole[6:9]

    params = SamplingParams(max_tokens=24, temperature=0.0, stop=["never there", stop], ignore_eos=True)
    completion = engine.generate(prompts[3], params)[0].outputs[0]

    assert completion.text == whole[: whole.index(stop)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_generation_ends_where_the_context_is_full(make_engine: MakeEngine, prompts: list[list[int]]) -> None:
    engine = make_engine(max_model_len=40)

    completion = engine.generate(prompts[2], SamplingParams(max_tokens=500, ignore_eos=True))[0].outputs[0]

    assert (len(completion.token_ids), completion.finish_reason) == (40 - 33, "length")


def test_text_and_messages_are_served_through_the_checkpoint_s_tokenizer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    message = {"role": "user", "content": "hé"}
    asked: list[str | list[int] | list[dict[str, Any]]] = ["hé", [message]]

    from_text, from_messages = engine.generate(asked, GREEDY_24)

    assert len(from_text.prompt_token_ids) == 1 + len("hé".encode())
    assert from_messages.prompt == "<s>[user] hé\n[assistant] "
    assert len(from_messages.prompt_token_ids) == 1 + len("[user] hé\n[assistant] ".encode())
    assert engine.generate([message], GREEDY_24)[0].outputs == from_messages.outputs


def test_an_aborted_request_gives_back_its_blocks_and_hurts_nobody(
    make_engine: MakeEngine, prompts: list[list[int]], greedy: Greedy, look_ahead: int
) -> None:
    engine = make_engine(max_num_seqs=2)
    for index, prompt in enumerate(prompts[:4]):
        engine.add_request(str(index), prompt, GREEDY_24)
    outputs = [output for _ in range(3) for output in engine.step()]

    running, waiting = engine.abort_request("0"), engine.abort_request("3")

    assert running is not None
    assert running.outputs[0].token_ids == greedy(prompts[0], 3 - look_ahead)  # those settled by now
    assert waiting is not None
    assert waiting.outputs[0].finish_reason == "abort"
    assert engine.abort_request("0") is None
    while engine.has_unfinished_requests():
        outputs += engine.step()
        engine.check_integrity()
    tokens = {output.request_id: output.outputs[0].token_ids for output in outputs}
    assert tokens == {"1": greedy(prompts[1], 24), "2": greedy(prompts[2], 24)}
    assert engine.stats().num_free_kv_blocks == engine.info.num_kv_blocks


def test_device_time_is_shared_out_completely(make_engine: MakeEngine, prompts: list[list[int]]) -> None:
    engine = make_engine(max_model_len=128, num_kv_blocks=12)

    outputs = engine.generate(prompts, GREEDY_24)

    shares = [output.metrics.device_ms for output in outputs]
    assert sum(shares) == pytest.approx(engine.stats().busy_ms)
    assert min(shares) > 0
    for output in outputs:
        metrics = output.metrics
        assert metrics.started_time_s is not None
        assert metrics.first_token_time_s is not None
        assert (
            metrics.arrival_time_s
            <= metrics.started_time_s
            < metrics.first_token_time_s
            <= metrics.finished_time_s
        )
        assert (metrics.num_prompt_tokens, metrics.num_completion_tokens) == (
            len(output.prompt_token_ids),
            24,
        )


def test_generate_leaves_the_outputs_of_other_requests_to_step(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    engine.add_request("mine", prompts[0], SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))

    engine.generate(prompts[1], GREEDY_24)

    assert engine.has_unfinished_requests()
    assert [output.request_id for output in engine.step()] == ["mine"]
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize(
    ("prompt", "remedy"),
    [
        ([], "at least one"),
        ("", "at least one character"),
        ([3] * 256, "at most 255"),
        ([3, 259], "0 to 258"),
        ([-1], "0 to 258"),
        ([3, "a"], "mixes kinds"),
        ([{"role": "tool", "content": "x"}], "tools are not served"),
        ("\ud800", "valid Unicode"),
        (b"bytes", "text, token ids or chat messages"),
    ],
)
def test_an_impossible_prompt_is_refused_with_the_remedy(
    make_engine: MakeEngine, prompt: object, remedy: str
) -> None:
    engine = make_engine()

    with pytest.raises(InvalidPrompt, match=remedy):
        engine.add_request("bad", prompt, GREEDY_24)  # type: ignore[arg-type]

    assert not engine.has_unfinished_requests()


def test_a_bad_prompt_in_a_list_stops_the_call_before_any_request_is_queued(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()

    with pytest.raises(InvalidPrompt):
        engine.generate([prompts[0], [999]], GREEDY_24)

    assert not engine.has_unfinished_requests()


def test_lists_of_different_lengths_and_used_ids_are_refused(
    make_engine: MakeEngine, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    engine.add_request("one", prompts[0], GREEDY_24)

    with pytest.raises(RequestError, match="'one' is in use"):
        engine.add_request("one", prompts[1], GREEDY_24)
    with pytest.raises(InvalidParams, match="2 params for 3 prompts"):
        engine.generate(prompts[:3], [GREEDY_24] * 2)
