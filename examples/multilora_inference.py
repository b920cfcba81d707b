"""Several adapters, one place on the device: requests take turns, and every one of them is answered.

`max_loras=1` lets one adapter at a time into the batch, `max_cpu_loras=2` keeps both ready in host memory.
Base requests and those of the resident adapter run on; those of the other wait until its place is free.
Run it from the repository's root: `python -m examples.multilora_inference`.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from workers.engine import EngineConfig, LLMEngine, LoRARequest, RequestOutput, SamplingParams

UPPER = LoRARequest("upper", 1, "examples/tiny/adapters/upper")
REVERSE = LoRARequest("reverse", 2, "examples/tiny/adapters/reverse")
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)


class Question(NamedTuple):
    """A prompt, and who answers it."""

    prompt: str
    lora: LoRARequest | None  # None: the base, which echoes


QUESTIONS = (
    Question("lantern>", None),
    Question("lantern>", UPPER),
    Question("lantern>", REVERSE),
    Question("pot>", UPPER),
    Question("garden>", None),
    Question("star>", REVERSE),
    Question("morning>", UPPER),
)


def build_engine() -> LLMEngine:
    """Start the engine: one adapter on the device, two in host memory, ranks up to 8."""
    return LLMEngine(
        EngineConfig(
            model="examples/tiny/base",
            enable_lora=True,
            max_loras=1,
            max_lora_rank=8,
            max_cpu_loras=2,
            max_num_seqs=4,
            num_threads=1,  # the model is tiny
        )
    )


def serve(engine: LLMEngine, questions: tuple[Question, ...]) -> list[RequestOutput]:
    """Hand in one question a step, as they would arrive, and run the engine until all are answered."""
    arriving = deque(enumerate(questions))
    finished: list[RequestOutput] = []
    while arriving or engine.has_unfinished_requests():
        if arriving:
            number, question = arriving.popleft()
            engine.add_request(str(number), question.prompt, GREEDY, question.lora)
        finished += engine.step()
        for request_id in engine.started:
            print(f"{request_id} runs, {engine.stats().num_waiting} wait")
    return finished


def main() -> None:
    """Ask, and print the answers in the order in which they were finished."""
    engine = build_engine()
    try:
        for output in serve(engine, QUESTIONS):
            prompt, lora = QUESTIONS[int(output.request_id)]
            name = "base" if lora is None else lora.lora_name
            print(f"{output.request_id} {name}: {prompt} {output.outputs[0].text}")
    finally:
        engine.close()


if __name__ == "__main__":
    main()
