"""What the engine is asked on a card, and what it answers on a CPU; this module, run, records that.

`python -m benchmarks.gpu.questions` writes the record, with the settings of the engine that made it, whenever
seeded choices, shipped adapters or these questions change; a test compares it with the engine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.feature_adapters import shipped, write
from benchmarks.gpu.folders import TINY
from benchmarks.gpu.sparse_model import write_adapters
from examples.tiny.tasks import TASKS, prompt, sample_words
from workers.engine import (
    EngineConfig,
    LLMEngine,
    LoRAMix,
    LoRARequest,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
)

RECORD = Path(__file__).parent / "recorded.json"
SETTINGS: dict[str, Any] = {
    "enable_lora": True,
    "max_loras": 3,
    "max_cpu_loras": 20,
    "max_lora_rank": 64,
    "max_num_seqs": 16,
    "max_model_len": 128,
    "num_kv_blocks": 160,
    "seed": 5,
}
"""Of the engine that answers, wherever it runs: eight adapters take turns on three slots."""
_ADAPTERS = ("upper", "reverse", "rot13", "sort", "vowels", "consonants", "twice", "swapends")
_WORDS_EACH = 6
_LEAST_GAP = 5e-3
"""Of the best log-probability over the second, for a greedy token to be asked for on another device."""
_GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
_DRAWN = SamplingParams(max_tokens=10, temperature=6.0, seed=11, ignore_eos=True)
_LONG = "the same words begin both of these two prompts, more than two blocks of them: "


class Question(NamedTuple):
    """One request, by a name that its answer is recorded under."""

    name: str
    prompt: str
    params: SamplingParams
    lora: LoRARequest | LoRAMix | None = None


class Answer(NamedTuple):
    """What came of it; several completions one after the other."""

    token_ids: list[int]
    logprobs: list[float]  # of those tokens, then of the prompt's, if asked for


def shipped_questions() -> list[tuple[Question, str]]:
    """Return words for the shipped adapters and for the base, each with its right answer."""
    loras, asked = shipped(), []
    params = SamplingParams(max_tokens=20, temperature=0.0)
    for name in _ADAPTERS:
        for word in sample_words(name, "held_out", _WORDS_EACH, seed=8):
            answer = TASKS[name].answer(word)
            asked.append((Question(f"{name} {word}", prompt(word), params, loras[name]), answer))
    words = sample_words("upper", "held_out", _WORDS_EACH, seed=9)
    asked += [(Question(f"base {word}", prompt(word), params), word) for word in words]
    # Neighbours have different adapters.
    return [asked[at] for start in range(_WORDS_EACH) for at in range(start, len(asked), _WORDS_EACH)]


def feature_questions(folder: Path) -> list[Question]:
    """Return a question for each feature; adapters of every kind are written to the folder."""
    loras, kinds = shipped(), write(folder)
    upper, reverse, sort = loras["upper"], loras["reverse"], loras["sort"]
    adapted = [Question(kind, "lantern>", _GREEDY, lora) for kind, lora in kinds.items()]
    adapted += [
        Question("scale 0.5", "meadow>", _GREEDY, replace(upper, scale=0.5)),
        Question("scale -1", "meadow>", _GREEDY, replace(kinds["dora"], scale=-1.0)),
        Question("scale 0", "meadow>", _GREEDY, replace(reverse, scale=0.0)),
        Question("mix of two", "copper>", _GREEDY, LoRAMix([(upper, 0.5), (reverse, 0.7)])),
        Question("mix of three", "copper>", _GREEDY, LoRAMix([(upper, 0.4), (sort, 0.4), (reverse, 0.4)])),
        Question("mix with bias", "copper>", _GREEDY, LoRAMix([(kinds["bias"], 0.6), (reverse, 0.7)])),
        Question("prefix, first", f"{_LONG}pot>", _GREEDY, upper),
        Question("prefix, second", f"{_LONG}star>", _GREEDY, upper),
    ]
    return adapted + list(_chosen(upper, kinds["head"]))


def sparse_questions(folder: Path) -> list[Question]:
    """Return questions to the model with experts; its adapters are written to the folder."""
    loras = write_adapters(folder / "sparse-adapters")
    asked: dict[str, LoRARequest | LoRAMix | None] = {**loras, "base": None}
    asked["scale -0.5"] = replace(loras["experts"], scale=-0.5)
    asked["mix"] = LoRAMix([(loras["experts"], 0.7), (loras["attention"], -0.4)])
    words = ("pot>", "lantern>", "meadow and star>")
    return [
        Question(f"{name} {at}", word, _GREEDY, lora)
        for at, word in enumerate(words, start=1)
        for name, lora in asked.items()
    ]


def _chosen(upper: LoRARequest, head: LoRARequest) -> Iterator[Question]:
    """Yield the ways in which tokens are chosen."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    forms: dict[str, Any] = {
        "regex": r"[A-C]{3}[0-9]{2}",
        "choice": ["pot", "star", "kettle"],
        "json": schema,
    }
    for kind, form in forms.items():
        limits = StructuredOutputsParams(**{kind: form})
        yield Question(kind, "anchor>", replace(_GREEDY, structured_outputs=limits), upper)
    drawn = replace(_DRAWN, structured_outputs=StructuredOutputsParams(regex=r"[a-f]{6}"))
    yield Question("regex, drawn", "anchor>", drawn)
    ways: dict[str, dict[str, Any]] = {
        "drawn": {},
        "top-k": {"top_k": 5},
        "top-p": {"top_p": 0.8},
        "min-p": {"min_p": 0.05},
        "all limits": {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "temperature": 9.0},
        "two completions": {"n": 2},
        "penalties, drawn": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    }
    for name, changes in ways.items():
        yield Question(name, "barrel>", replace(_DRAWN, **changes), upper)
        yield Question(f"{name}, head", "barrel>", replace(_DRAWN, **changes), head)
    edits: dict[str, dict[str, Any]] = {
        "penalties": {"repetition_penalty": 3.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        "logit bias": {"logit_bias": {335: 12.0, 307: -100.0}},
        "bad words": {"bad_words": ("A", "T")},
        "at least": {"ignore_eos": False, "min_tokens": 9},
        "stop string": {"stop": "TR"},
        "logprobs": {"logprobs": 3},
        "prompt logprobs": {"prompt_logprobs": 2},
    }
    for name, changes in edits.items():
        yield Question(name, "theatre>", replace(_GREEDY, **changes), upper)


def ask(engine: LLMEngine, questions: Sequence[Question]) -> list[RequestOutput]:
    """Ask everything at once and return the outputs in order; seeds of the engine's own do not matter."""
    names, prompts, params, loras = zip(*questions, strict=True)
    del names
    return engine.generate(list(prompts), list(params), list(loras), use_tqdm=False)


def answer_of(output: RequestOutput) -> Answer:
    """Return what is compared; RuntimeError if the request failed."""
    if output.error is not None:
        raise RuntimeError(f"{output.error.code}: {output.error.message}")
    token_ids = [token_id for one in output.outputs for token_id in one.token_ids]
    positions = [
        (token_id, found)
        for one in output.outputs
        for token_id, found in zip(one.token_ids, one.logprobs or (), strict=False)
    ]
    prompted = zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=False)
    positions += [(token_id, found) for token_id, found in prompted if found is not None]
    return Answer(token_ids, [found[token_id].logprob for token_id, found in positions])


def recorded() -> dict[str, Answer]:
    """Return the CPU engine's answers by the questions' names."""
    answers = json.loads(RECORD.read_text())["answers"]
    return {name: Answer(*answer) for name, answer in answers.items()}


def answers_of_the_cpu() -> dict[str, Answer]:
    """Ask an engine on the CPU, in float32."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LLMEngine(EngineConfig(model=str(TINY / "base"), num_threads=1, **SETTINGS)) as engine,
    ):
        questions = [*(one for one, _ in shipped_questions()), *feature_questions(Path(folder))]
        _require_leads(engine, questions)
        return {
            one.name: answer_of(output) for one, output in zip(questions, ask(engine, questions), strict=True)
        }


def _require_leads(engine: LLMEngine, questions: Sequence[Question]) -> None:
    """Refuse greedy questions whose answer is a near tie, which another device may break otherwise."""
    plain = [one for one in questions if one.params.is_greedy and one.params.structured_outputs is None]
    asked = [
        one._replace(params=replace(one.params, logprobs=2)) for one in plain if not one.params.edits_logits
    ]
    for one, output in zip(asked, ask(engine, asked), strict=True):
        for found in output.outputs[0].logprobs or ():
            best, second = sorted((each.logprob for each in found.values()), reverse=True)[:2]
            if best - second < _LEAST_GAP:
                raise RuntimeError(
                    f"{one.name!r}: a token leads by {best - second:.1e} only, which rounding may turn; "
                    f"ask something that leads by {_LEAST_GAP}"
                )


def main() -> None:
    """Record the CPU engine's answers."""
    answers = {name: list(answer) for name, answer in answers_of_the_cpu().items()}
    settings = {"model": "examples/tiny/base", "device": "cpu", "dtype": "float32", **SETTINGS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    RECORD.write_text(f'{{"settings": {json.dumps(settings)},\n"answers": {{\n{lines}\n}}}}\n')
    print(f"{len(answers)} answers in {RECORD}")


if __name__ == "__main__":
    main()
