"""What `python -m workers.engine` is asked: its options, and the engine and requests they stand for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workers.engine.core.config import EngineConfig
from workers.engine.core.errors import InvalidParams, InvalidPrompt, RequestError
from workers.engine.core.lora_request import AnyLoRA, LoRAMix, LoRARequest
from workers.engine.core.sampling_params import RequestOutputKind, SamplingParams
from workers.engine.core.structured_outputs import StructuredOutputsParams
from workers.engine.serving.input_processor import Prompt

_DESCRIPTION = """\
Answer prompts with a checkpoint and LoRA adapters, without any broker: one answer a line, in order.

With one --adapter, every prompt is answered with it. With several, every prompt is answered with
each of them, in one mixed batch, the adapter's name before each answer; with --mix, with all of them at once.
"""
_EPILOG = """\
examples:
  python -m workers.engine examples/tiny/base 'hello>' --adapter examples/tiny/adapters/upper
  python -m workers.engine MODEL 'Hi there' --chat --stream --adapter sql=adapters/sql --scale 0.5
  cat prompts.txt | python -m workers.engine MODEL - --adapter a=one --adapter b=two --mix 0.7,0.3

What cannot be done is said on stderr in one line, its code first; the exit status is then 1
(2 for wrong usage).
"""


class Question(NamedTuple):
    """A prompt and the adapters that answer it."""

    label: str  # goes before its answer
    prompt: Prompt
    lora: AnyLoRA | None


@dataclass(frozen=True, slots=True)
class Asked:
    """All that a command line asks for."""

    config: EngineConfig
    params: SamplingParams
    adapters: tuple[LoRARequest, ...]
    questions: tuple[Question, ...]


def read_command_line(arguments: list[str] | None) -> Asked:
    """Return what is asked for; raises `RequestError` or `ConfigError`, and exits if usage is wrong."""
    options = _parser().parse_args(arguments)
    adapters = tuple(_adapters(options.adapter, options.scale))
    config = EngineConfig(
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        served_model_name=options.served_model_name,
        generation_config=options.generation_config,
        enable_lora=bool(adapters),
        max_loras=max(1, len(adapters)),
        max_lora_rank=512,  # a limit for others' requests; these are one's own
        num_threads=options.threads,
        seed=options.seed or 0,
    )
    questions = tuple(_questions(options, adapters))
    return Asked(config, _params(options), adapters, questions)


def _params(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        n=options.n,
        seed=options.seed,
        stop=options.stop,
        output_kind=RequestOutputKind.DELTA if options.stream else RequestOutputKind.FINAL_ONLY,
        structured_outputs=None if options.json_schema is None else _form(options.json_schema),
    )


def _form(path: Path) -> StructuredOutputsParams:
    try:
        return StructuredOutputsParams(json=path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParams(f"--json-schema {path} cannot be read: {error}; give a file of JSON") from error


def _adapters(given: list[str], scale: float) -> Iterator[LoRARequest]:
    names: set[str] = set()
    for number, text in enumerate(given, start=1):
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).absolute().name, text
        if name in names:
            raise RequestError(
                f"two adapters are called {name!r}; give each its own name, --adapter NAME={path}"
            )
        names.add(name)
        yield LoRARequest(name, number, path, scale=scale)


def _questions(options: argparse.Namespace, adapters: tuple[LoRARequest, ...]) -> Iterator[Question]:
    loras = _loras(options.mix, adapters)
    for text in _prompts(options.prompts):
        prompt: Prompt = [{"role": "user", "content": text}] if options.chat else text
        for lora in loras:
            label = f"{lora.lora_name}: " if len(loras) > 1 and isinstance(lora, LoRARequest) else ""
            yield Question(label, prompt, lora)


def _loras(mix: str | None, adapters: tuple[LoRARequest, ...]) -> list[AnyLoRA | None]:
    """Return what answers each prompt, one answer for each."""
    if mix is None:
        return list(adapters) or [None]
    try:
        weights = [float(weight) for weight in mix.split(",")]
    except ValueError as error:
        raise RequestError(f"--mix is {mix!r}; give one number for each adapter, such as 0.7,0.3") from error
    if len(weights) != len(adapters):
        raise RequestError(f"--mix is {mix!r}; give one number for each --adapter, which are {len(adapters)}")
    return [LoRAMix(list(zip(adapters, weights, strict=True)))]


def _prompts(given: list[str]) -> list[str]:
    """Return the prompts, those of standard input in the place of "-"."""
    prompts: list[str] = []
    for prompt in given:
        prompts += [line for line in sys.stdin.read().splitlines() if line] if prompt == "-" else [prompt]
    if not prompts:
        raise InvalidPrompt("standard input holds no prompt; give one a line")
    return prompts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.engine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face checkpoint")
    parser.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help='a prompt; "-" for one of each line of standard input'
    )
    parser.add_argument("--chat", action="store_true", help="prompts are user messages for the chat template")
    parser.add_argument("--stream", action="store_true", help="print text as soon as it is certain")
    parser.add_argument("--json-schema", type=Path, metavar="FILE", help="answers are JSON of this schema")
    _add_adapter_options(parser)
    _add_sampling_options(parser)
    _add_engine_options(parser)
    return parser


def _add_adapter_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("adapters").add_argument
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="folder of a PEFT LoRA adapter; may be given several times (name: the folder's)",
    )
    add("--scale", type=float, default=1.0, metavar="X", help="strength of the adapters (1: as trained)")
    add("--mix", metavar="W,W,...", help="put all adapters upon each prompt, with these weights, in order")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--max-tokens", type=int, default=64, metavar="N", help="tokens per answer at most (64)")
    add("--temperature", type=float, default=0.0, metavar="X", help="0, the default, is greedy")
    add("--top-p", type=float, metavar="X", help="draw from the likeliest of this share (the model's, or 1)")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest (the model's, or 0: from all)")
    add("--min-p", type=float, metavar="X", help="drop what is less likely than this share of the likeliest")
    add("--repetition-penalty", type=float, metavar="X", help="makes repeats less likely (the model's, or 1)")
    add("--seed", type=int, metavar="N", help="the same answers each time, whatever else is asked")
    add("--n", type=int, default=1, metavar="N", help="answers to each prompt")
    add("--stop", action="append", metavar="TEXT", help="end before this text; may be given several times")


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add("--device", default="cpu", help="cpu, the default, cuda, or cuda:N for one of several cards")
    add("--dtype", default="float32", help="float32, the default, bfloat16, or on a card float16")
    add("--quantization", metavar="HOW", help="int8 or bitsandbytes: quantise a plain checkpoint at loading")
    add("--served-model-name", metavar="NAME", help="what adapters call the model (config.json's name)")
    add(
        "--generation-config",
        default="auto",
        metavar="USE",
        help="auto, the default: sampling not given is as the model's generation_config.json says; none: not",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (one per core)")
