"""An adapter upon quantised bases: NF4 and int8 made while loading, AWQ and GPTQ read from their files.

The adapter was trained on the plain base and stays as it is; only the base's linear modules are quantised.
Run it from the repository's root: `python -m examples.lora_with_quantization_inference`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from examples.quantized_copy import write_awq, write_gptq
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams

BASE = Path("examples/tiny/base")
ADAPTER = "examples/tiny/adapters/upper"
PROMPTS = ("lantern>", "garden>", "morning>")
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)


class Served(NamedTuple):
    """A base as it is served: `quantization` is the engine's setting, None to take a checkpoint as it is."""

    name: str
    model: Path
    quantization: str | None


def quantized_bases(folder: Path) -> Iterator[Served]:
    """Yield the plain base, and the same base in each kind of quantisation, files made in `folder`."""
    yield Served("plain", BASE, None)
    yield Served("bitsandbytes NF4, in flight", BASE, "bitsandbytes")
    yield Served("int8, in flight", BASE, "int8")
    write_awq(BASE, folder / "awq")
    yield Served("AWQ", folder / "awq", "awq")
    write_gptq(BASE, folder / "gptq")
    yield Served("GPTQ", folder / "gptq", "gptq")


def ask(served: Served, lora: LoRARequest) -> list[str]:
    """Ask the base and the adapter the same questions; print their answers and the bytes held."""
    engine = LLMEngine(
        EngineConfig(
            model=str(served.model),
            dtype="bfloat16",
            quantization=served.quantization,
            enable_lora=True,
            max_lora_rank=8,
            num_threads=1,  # the model is tiny
        )
    )
    try:
        loras = [None] * len(PROMPTS) + [lora] * len(PROMPTS)
        outputs = engine.generate(PROMPTS * 2, GREEDY, loras)
        answers = [output.outputs[0].text for output in outputs]
        print(f"{served.name}: {' '.join(answers)} ({engine.info.linear_bytes} bytes)")
        return answers
    finally:
        engine.close()


def main() -> None:
    """Serve every kind in turn, the adapter under an id of its own each time."""
    with tempfile.TemporaryDirectory() as folder:
        for number, served in enumerate(quantized_bases(Path(folder)), start=1):
            ask(served, LoRARequest(f"upper-{number}", number, ADAPTER))


if __name__ == "__main__":
    main()
