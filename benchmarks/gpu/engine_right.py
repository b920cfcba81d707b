"""Stage: the engine's answers on the card: right words, the CPU's tokens, and no hidden waits."""

from __future__ import annotations

import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.folders import TINY
from benchmarks.gpu.questions import (
    SETTINGS,
    Answer,
    Question,
    answer_of,
    ask,
    feature_questions,
    recorded,
    shipped_questions,
    sparse_questions,
)
from benchmarks.gpu.records import Recorder
from benchmarks.gpu.serving import StepClock, graphs_of, settings
from benchmarks.gpu.sparse_model import write_model
from benchmarks.gpu.workers import share_out
from workers.engine import EngineConfig, LLMEngine, RequestOutput, SamplingParams

_LOGPROB_LIMIT = 2e-3
_ROUNDED_LOGPROB_LIMIT = 0.25
"""In bfloat16, whose log-probabilities move with every order of summation."""
_REHEARSED, _REHEARSED_WAITS = ("mix with bias",), ("regex, drawn",)
_REHEARSED_SPARSE = ("experts 1",)
_REHEARSED_TOKENS = 2
_STACK_END = 7


class Case(NamedTuple):
    """An engine, and what is held to be right of it."""

    name: str
    limits: dict[str, Any]
    run: Callable[[Device, Recorder, str, LLMEngine, Path], None]
    has_experts: bool = False  # whether the model has, in place of the tiny base


def run(device: Device, recorder: Recorder) -> None:
    """Run each case in a process of its own, side by side: they compile at the same time."""
    cases = _cases(device)

    def work(item: int) -> None:
        case = cases[item]
        torch.backends.cuda.matmul.allow_tf32 = False
        with recorder.alone(case.name), tempfile.TemporaryDirectory() as folder:
            given = {**SETTINGS, **settings(device), **case.limits}
            model = write_model(Path(folder) / "sparse") if case.has_experts else TINY / "base"
            began_s = time.perf_counter()
            with LLMEngine(EngineConfig(model=str(model), **given)) as engine:
                graphs = graphs_of(engine)
                recorder.row(
                    "tiny engines",
                    engine=case.name,
                    start_s=time.perf_counter() - began_s,
                    capture_s=None if graphs is None else graphs.capture_s,
                )
                case.run(device, recorder, case.name, engine, Path(folder))
                engine.check_integrity()

    def lost(item: int, exit_status: int) -> None:
        name = cases[item].name if item >= 0 else "before the first case"
        recorder.failure(name, f"its process ended with exit status {exit_status}")

    num_workers = 2 if device.is_rehearsal else len(cases)
    share_out(len(cases), work, lost, device=device, num_workers=num_workers)


def _cases(device: Device) -> list[Case]:
    if device.is_rehearsal:
        return [
            Case("float32", {}, _answers),
            Case("waits", {}, _waits),
            _quantized_case("NF4", {"quantization": "bitsandbytes", "dtype": "float16"}),
            # By the CPU's own kernels: the tests interpret the others for such a model.
            Case("experts", {"kernels": None}, _sparse_answers, has_experts=True),
        ]
    return [
        Case("float32", {"dtype": "float32"}, _answers),
        Case("bfloat16", {}, _shipped_answers),
        Case("waits, bfloat16", {}, _waits),
        Case("float32, eager", {"dtype": "float32", "enforce_eager": True}, _answers),
        _quantized_case("NF4, float32", {"quantization": "bitsandbytes", "dtype": "float32"}),
        _quantized_case("NF4, bfloat16", {"quantization": "bitsandbytes"}),
        _quantized_case("int8, bfloat16", {"quantization": "int8"}),
        Case("experts", {"dtype": "float32"}, _sparse_answers, has_experts=True),
    ]


def _quantized_case(name: str, limits: dict[str, Any]) -> Case:
    return Case(name, limits, partial(_as_if_dequantized, limits))


def _answers(device: Device, recorder: Recorder, name: str, engine: LLMEngine, folder: Path) -> None:
    """Compare everything with what the CPU's engine answered, then once more with prefixes in the cache."""
    _shipped_answers(device, recorder, name, engine, folder)
    expected = recorded()
    questions = _fitting(device, feature_questions(folder), _REHEARSED)
    outputs: list[RequestOutput] = []
    for turn in ("features", "features again"):
        outputs = ask(engine, questions)
        for question, output in zip(questions, outputs, strict=True):
            _compare(device, recorder, f"{name}, {turn}", question.name, output, expected[question.name])
        if device.is_rehearsal:
            return
    by_name = {question.name: output for question, output in zip(questions, outputs, strict=True)}
    num_cached = by_name["prefix, second"].metrics.num_cached_tokens
    recorder.check(
        f"engine: {name}, prefix cache",
        f"{num_cached} tokens of a prompt were cached",
        error=float(num_cached < 2 * engine.info.block_size),
        limit=0,
        passed=num_cached >= 2 * engine.info.block_size,
    )


def _as_if_dequantized(
    limits: dict[str, Any], device: Device, recorder: Recorder, name: str, engine: LLMEngine, folder: Path
) -> None:
    """Hold prompts' log-probabilities, with adapters, to those of the base dequantised into the dtype."""
    del folder
    asked = [question for question, _ in shipped_questions()]
    if device.is_rehearsal:
        asked = [asked[0]._replace(prompt="k>", lora=None)]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    questions = [one._replace(params=params) for one in asked]
    given = {**SETTINGS, **settings(device), **limits, "quant_storage": "dequantize"}
    kept = ask(engine, questions)
    with LLMEngine(EngineConfig(model=str(TINY / "base"), **given)) as plain:
        dequantized = ask(plain, questions)
    limit = _LOGPROB_LIMIT if given["dtype"] == "float32" else _ROUNDED_LOGPROB_LIMIT
    for question, *outputs in zip(questions, kept, dequantized, strict=True):
        ours, theirs = (answer_of(one).logprobs for one in outputs)
        error = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
        recorder.check(f"engine: {name}", question.name, error=error, limit=limit, passed=error <= limit)


def _shipped_answers(device: Device, recorder: Recorder, name: str, engine: LLMEngine, folder: Path) -> None:
    """Ask words of eight adapters, which take turns on three slots, and of the base."""
    del folder
    asked = shipped_questions()[: 1 if device.is_rehearsal else None]
    expected = recorded()
    questions = _fitting(device, [question for question, _ in asked])
    for (question, right), output in zip(asked, ask(engine, questions), strict=True):
        _compare(device, recorder, f"{name}, words", question.name, output, expected[question.name])
        text = output.outputs[0].text if output.outputs else ""
        if not device.is_rehearsal:
            recorder.check(
                f"engine: {name}, right words",
                f"{question.name}: {text!r} for {right!r}",
                error=float(text != right),
                limit=0,
                passed=text == right,
            )


def _sparse_answers(device: Device, recorder: Recorder, name: str, engine: LLMEngine, folder: Path) -> None:
    """Ask a model with experts, with adapters on them, and compare with the CPU's engine, asked here."""
    questions = _fitting(device, sparse_questions(folder), _REHEARSED_SPARSE)
    given = {**SETTINGS, "max_num_seqs": engine.info.max_num_seqs, "num_threads": 1}
    with LLMEngine(EngineConfig(model=engine.info.model, **given)) as on_cpu:
        expected = [answer_of(output) for output in ask(on_cpu, questions)]
    for question, output, answer in zip(questions, ask(engine, questions), expected, strict=True):
        _compare(device, recorder, name, question.name, output, answer)


def _fitting(device: Device, questions: Sequence[Question], names: tuple[str, ...] = ()) -> list[Question]:
    """Return the questions, in a rehearsal those named, with short answers."""
    if not device.is_rehearsal:
        return list(questions)
    few = [one for one in questions if one.name in names] if names else list(questions)
    return [one._replace(params=replace(one.params, max_tokens=_REHEARSED_TOKENS)) for one in few]


def _compare(
    device: Device, recorder: Recorder, kernel: str, name: str, output: RequestOutput, expected: Answer
) -> None:
    """Count the tokens that differ; a rehearsal's answers are cut off."""
    with recorder.alone(f"{kernel}, {name}"):
        found = answer_of(output)
        wanted = expected.token_ids[: _REHEARSED_TOKENS if device.is_rehearsal else None]
        differing = sum(one != other for one, other in zip(found.token_ids, wanted, strict=False))
        differing += abs(len(wanted) - len(found.token_ids))
        recorder.check(f"engine: {kernel}", name, error=differing, limit=0, passed=differing == 0)
        if found.logprobs:
            pairs = zip(found.logprobs, expected.logprobs, strict=False)
            error = max(abs(one - other) for one, other in pairs)
            recorder.check(
                f"engine: {kernel}, log-probabilities",
                name,
                error=error,
                limit=_LOGPROB_LIMIT,
                passed=error <= _LOGPROB_LIMIT,
            )


def _waits(device: Device, recorder: Recorder, name: str, engine: LLMEngine, folder: Path) -> None:
    """Run rows of every way to choose, and have CUDA tell each hidden wait."""
    questions = _fitting(device, feature_questions(folder), _REHEARSED_WAITS)
    if not device.is_rehearsal:
        ask(engine, questions)  # brings the adapters, and compiles what only such rows need
    clock = StepClock(engine, device)
    for at, question in enumerate(questions):
        engine.add_request(f"waits-{at}", question.prompt, question.params, question.lora)
    with _told_waits(device) as found:
        while engine.has_unfinished_requests():
            clock.step()
    clock.stop()
    times = [one for one in clock.times() if one.forward_s > 0]
    most = max(one.num_waits for one in times)
    recorder.check(f"engine: {name}", "waits of a step", error=most, limit=1, passed=most <= 1)
    for stack, count in found.most_common():
        recorder.check(
            f"engine: {name}", f"{count} hidden waits at {stack}", error=count, limit=0, passed=False
        )
    recorder.check(f"engine: {name}", "places of hidden waits", error=len(found), limit=0, passed=not found)


@contextmanager
def _told_waits(device: Device) -> Iterator[Counter[str]]:
    """Count the ends of the stacks that wait for the device through torch; an event's own wait is no such."""
    found: Counter[str] = Counter()
    engine_thread = threading.get_ident()  # adapters are copied by another, which may wait

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message) and threading.get_ident() == engine_thread:
            frames = traceback.extract_stack()[:-1]
            ours = [
                one for one in frames if "/torch/" not in one.filename and "warnings" not in one.filename
            ][-_STACK_END:]
            found[
                " < ".join(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(ours))
            ] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if device.is_rehearsal:
            yield found
            return
        torch.cuda.set_sync_debug_mode("warn")
        found.clear()  # of what switching it on says of itself
        try:
            torch.zeros(1, device="cuda").item()
            if not found:
                raise RuntimeError("torch did not tell of a wait that was made on purpose")
            found.clear()
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
