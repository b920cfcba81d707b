"""A bar on the terminal for prompts that are served to their end, with the speed of reading and writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from workers.engine.core.outputs import RequestOutput

UseTqdm = bool | Callable[..., Any]
"""True: a bar if stderr is a terminal. False: none. A callable makes the bar, as `tqdm.tqdm` does."""


class ProgressBar:
    """Counts the requests that have ended; closes its bar when its `with` block is left."""

    def __init__(self, use_tqdm: UseTqdm, num_prompts: int) -> None:
        self._began_s = time.monotonic()
        self._num_read = self._num_written = 0
        self._bar = _bar(use_tqdm, total=num_prompts, desc="Processed prompts", dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def count(self, output: RequestOutput) -> None:
        """Show one more request as ended, and how fast tokens came and went so far."""
        self._num_read += output.metrics.num_prompt_tokens
        self._num_written += output.metrics.num_completion_tokens
        if self._bar is not None:
            seconds = max(time.monotonic() - self._began_s, 1e-9)
            self._bar.postfix = (
                f"est. speed input: {self._num_read / seconds:.2f} toks/s, "
                f"output: {self._num_written / seconds:.2f} toks/s"
            )
            self._bar.update(1)


def _bar(use_tqdm: UseTqdm, **options: Any) -> Any:
    if callable(use_tqdm):
        return use_tqdm(**options)
    return tqdm(**options, disable=None) if use_tqdm else None  # None: off if stderr is no terminal
