"""Jobs of micro-batches and engine outputs, made by hand."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from lorayard.contract.messages import BatchJob
from lorayard.contract.request import GenerationRequest
from workers.engine.core.outputs import (
    CompletionOutput,
    FinishReason,
    RequestFailure,
    RequestMetrics,
    RequestOutput,
)

REVISION = "sha256:" + "ab" * 32


def batch_job(**changes: Any) -> BatchJob:
    """Make a job as the leader sends it; fields of its request go by name too."""
    values: dict[str, Any] = {
        "job_id": uuid4(),
        "attempt": 1,
        "tenant": "default",
        "adapter": "upper",
        "revision": REVISION,
        "queue_ms": 10.0,
        "reply_to": "client-1",
        "has_callback": False,
    }
    asked = {name: changes.pop(name) for name in [*changes] if name in GenerationRequest.model_fields}
    request = {"prompt": "hello>", "max_tokens": 8} | asked
    if "messages" in asked:
        del request["prompt"]
    return BatchJob(**({"request": request} | values | changes))


def engine_output(
    request_id: str,
    finish_reason: FinishReason = "stop",
    text: str = "HELLO",
    error: RequestFailure | None = None,
) -> RequestOutput:
    """Make what the engine answers at a request's end."""
    return RequestOutput(
        request_id=request_id,
        prompt="hello>",
        prompt_token_ids=[1, 2],
        outputs=[CompletionOutput(0, text, [3, 4, 5], finish_reason)],
        finished=True,
        lora_request=None,
        metrics=RequestMetrics(
            arrival_time_s=0.0,
            started_time_s=0.5,
            first_token_time_s=0.6,
            finished_time_s=1.0,
            num_prompt_tokens=2,
            num_completion_tokens=3,
            device_ms=7.0,
            num_preemptions=0,
        ),
        error=error,
    )
