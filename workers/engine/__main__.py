"""Asks the engine from a shell: `python -m workers.engine MODEL PROMPT... [--adapter FOLDER]`."""

from __future__ import annotations

import sys

from workers.engine.cli.command_line import Asked, read_command_line
from workers.engine.cli.ordered_printer import OrderedPrinter
from workers.engine.core.errors import EngineError
from workers.engine.core.outputs import RequestFailure
from workers.engine.serving.engine import LLMEngine
from workers.engine.serving.log_lines import log_in_words


def main(arguments: list[str] | None = None) -> int:
    """Print the answers, one a line; returns the exit status."""
    try:
        asked = read_command_line(arguments)
        with LLMEngine(asked.config) as engine:
            failures = _stream(engine, asked) if asked.params.streams else _answer(engine, asked)
    except EngineError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for failure in failures:
        print(f"{failure.code}: {failure.message}", file=sys.stderr)
    return 1 if failures else 0


def _answer(engine: LLMEngine, asked: Asked) -> list[RequestFailure]:
    _load_adapters(engine, asked)
    prompts = [question.prompt for question in asked.questions]
    outputs = engine.generate(prompts, asked.params, [question.lora for question in asked.questions])
    for question, output in zip(asked.questions, outputs, strict=True):
        for completion in output.outputs:
            print(question.label + completion.text)
    return [output.error for output in outputs if output.error is not None]


def _stream(engine: LLMEngine, asked: Asked) -> list[RequestFailure]:
    """Print the answers in order, the first unfinished one as it comes; those after it run meanwhile."""
    _load_adapters(engine, asked)
    printer, failures = OrderedPrinter(lambda text: print(text, end="", flush=True)), []
    for number, question in enumerate(asked.questions):
        engine.add_request(str(number), question.prompt, asked.params, question.lora)
        for index in range(asked.params.n):
            printer.open((str(number), index))
            printer.add((str(number), index), question.label)
    while engine.has_unfinished_requests():
        for output in engine.step():
            for completion in output.outputs:
                turn = (output.request_id, completion.index)
                if output.finished:
                    printer.end(turn, "\n")
                else:
                    printer.add(turn, completion.text)
            if output.error is not None:
                failures.append(output.error)
    return failures


def _load_adapters(engine: LLMEngine, asked: Asked) -> None:
    """Load them now, so that a bad one is refused before anything is answered."""
    for adapter in asked.adapters:
        engine.add_lora(adapter)


if __name__ == "__main__":
    log_in_words()  # and keep standard output for answers
    sys.exit(main())
