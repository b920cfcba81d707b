"""Asks the engine from a shell: `python -m workers.engine MODEL PROMPT... [--adapter FOLDER]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from workers.engine.config import EngineConfig
from workers.engine.engine import LLMEngine
from workers.engine.errors import EngineError
from workers.engine.lora.request import LoRARequest
from workers.engine.sampling_params import SamplingParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one answer a line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        answers = _answers(options)
    except EngineError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(*answers, sep="\n")
    return 0


def _answers(options: argparse.Namespace) -> list[str]:
    config = EngineConfig(
        model=options.model,
        dtype=options.dtype,
        enable_lora=options.adapter is not None,
        num_threads=options.threads,
    )
    lora = None if options.adapter is None else LoRARequest(Path(options.adapter).name, 1, options.adapter)
    engine = LLMEngine(config)
    try:
        if lora is not None:
            engine.add_lora(lora)
        params = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature)
        return [output.outputs[0].text for output in engine.generate(options.prompts, params, lora)]
    finally:
        engine.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description="Generate text.")
    parser.add_argument("model", help="folder of a Hugging Face checkpoint")
    parser.add_argument("prompts", nargs="+", metavar="prompt")
    parser.add_argument("--adapter", help="folder of a PEFT LoRA adapter")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, help="default: one per core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
