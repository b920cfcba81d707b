"""A connection to Postgres on which every answer has a limit that the client keeps."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when its server keeps it waiting for longer than `answer_s`.

    A server that hangs (stopped, its disk stuck) ends no statement by its own limits, and its kernel goes on
    acknowledging, so neither keepalives nor `tcp_user_timeout` notice it. Then psycopg.OperationalError is
    raised.
    """

    answer_s: float | None = None
    """Mutable: the limit for each statement, and each batch of its rows; None for none."""

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """Wait for one answer, which psycopg consumes step by step."""
        if self.answer_s is not None:
            gen = self._within(gen, self.answer_s)
        return super().wait(gen, *arguments, **options)

    def _within(self, gen: Generator[Any, Any, T], limit_s: float) -> Generator[Any, Any, T]:
        deadline = time.monotonic() + limit_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                # psycopg looks up every tenth of a second. What is there is read, however late it came.
                if not ready and time.monotonic() >= deadline:
                    gen.close()
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {limit_s:g} s, so it is given up")
                wanted = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value
