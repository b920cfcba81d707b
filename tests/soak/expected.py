"""Computes the right answer of every distinct request: alone in the engine, in float32, with no pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples.demo.workload import ADAPTERS_DIR, MODEL_DIR
from examples.tiny.tasks import prompt, sample_words
from tests.soak.plan import ADAPTERS, MOVING, MOVING_WORDS, WORDS_PER_ADAPTER, Request, requests
from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams, StructuredOutputsParams

MAX_TOKENS = 24


def generation(request: Request) -> dict[str, Any]:
    """Return the fields of a job that decide its answer."""
    count = max(WORDS_PER_ADAPTER, MOVING_WORDS)
    task = request.adapter if request.adapter in ADAPTERS else "upper"
    word = sample_words(task, "held_out", count, seed=11)[request.number]
    fields: dict[str, Any] = {"max_tokens": MAX_TOKENS}
    if request.adapter is not None:
        fields["adapter"] = request.adapter
    if request.form == "messages":
        return fields | {"messages": [{"role": "user", "content": prompt(word)}]}
    fields["prompt"] = prompt(word)
    if request.form == "choice":
        fields["structured_outputs"] = {"choice": ["AB", "ab", "ba", word]}
    elif request.form == "regex":
        fields["structured_outputs"] = {"regex": "[a-z]{2,12}"}
    elif request.form == "sampled":
        fields |= {"temperature": 1.0, "seed": request.number}
    return fields


def write_expected(path: Path) -> None:
    """Write `{request: {adapter: what comes of it}}`, the adapter being '' for the base.

    A request whose answer depends on what else is in the batch would prove nothing: it raises ValueError.
    """
    engine = LLMEngine(
        EngineConfig(
            model=str(MODEL_DIR), dtype="float32", enable_lora=True, max_loras=10, max_lora_rank=16,
            max_cpu_loras=16, max_num_seqs=32, max_model_len=512, num_threads=1, batch_invariant=True,
        )
    )  # fmt: skip
    adapters = {
        name: LoRARequest(name, number + 1, str(ADAPTERS_DIR / name)) for number, name in enumerate(ADAPTERS)
    }
    asked = [
        (request, source)
        for request in requests()
        for source in (ADAPTERS if request.adapter == MOVING else [request.adapter or ""])
    ]
    inputs = [
        (fields.get("messages") or fields["prompt"], _params(fields), adapters.get(source))
        for fields, source in ((generation(request), source) for request, source in asked)
    ]
    alone = [_told(engine.generate([text], params, lora, use_tqdm=False)[0]) for text, params, lora in inputs]
    texts, params, loras = zip(*inputs, strict=True)
    together = engine.generate(list(texts), list(params), list(loras), use_tqdm=False)
    expected: dict[str, dict[str, Any]] = {}
    for (request, source), one, other in zip(asked, alone, together, strict=True):
        if one != _told(other):
            raise ValueError(
                f"request {request.name!r} on {source or 'the base'} gives {one} alone and {_told(other)} in "
                "a batch: take another word in tests/soak/plan.py"
            )
        expected.setdefault(request.name, {})[source] = one
    path.write_text(json.dumps(expected))


def _params(fields: dict[str, Any]) -> SamplingParams:
    form = fields.get("structured_outputs")
    return SamplingParams(
        max_tokens=fields["max_tokens"],
        temperature=fields.get("temperature", 0.0),
        seed=fields.get("seed"),
        structured_outputs=StructuredOutputsParams(**form) if form else None,
    )


def _told(output: Any) -> dict[str, Any]:
    (one,) = output.outputs
    return {
        "output": one.text,
        "finish_reason": one.finish_reason,
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": len(one.token_ids),
    }
