"""An engine's process whose device fails when a file says so.

While it holds "forward KIND" or "start KIND", forward passes or the building of the engine raise the error
of that kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workers.engine.serving import child
from workers.engine.serving.engine import LLMEngine
from workers.engine.serving.executor import LocalExecutor

ERRORS: dict[str, Exception] = {
    "lost": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "bug": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
}


def program(order: Path) -> str:
    """Return what stands in for `workers.engine.serving.process._PROGRAM`, obeying the file `order`."""
    return (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"from {__name__} import main\n"
        f"main(int(sys.argv[3]), {str(order)!r})\n"
    )


def main(file: int, order: str) -> None:
    """Run an engine's process that looks for the order before each forward pass."""

    def fail(where: str) -> None:
        words = Path(order).read_text().split() if Path(order).exists() else ["", ""]
        if words[0] == where:
            raise ERRORS[words[1]]

    forward = LocalExecutor.forward

    def failing_forward(executor: LocalExecutor, step: Any) -> Any:
        fail("forward")
        return forward(executor, step)

    def failing_engine(*arguments: Any, **named: Any) -> Any:
        fail("start")
        return LLMEngine(*arguments, **named)

    LocalExecutor.forward = failing_forward  # type: ignore[method-assign, assignment]
    child.LLMEngine = failing_engine  # type: ignore[attr-defined, assignment]
    child.main(file)
