"""The child process that compiles a grammar first: it may take too long, and then it alone dies of it."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers.engine.core.child_process import NO_CARDS, ChildProcess
from workers.engine.core.errors import InvalidParams

CPU_S = 2
"""Processor time a grammar may take to compile and to be tried; large ones of real use take 0.7 s."""
MEMORY_BYTES = 2 << 30
_WALL_S = 30.0
"""The child gives way to the engine, so that on a busy machine its seconds are long."""
_CHILD = Path(__file__).with_name("grammar_check_process.py")
# By its path: as a module it would load its room first, and it needs nothing of the engine.
_PROGRAM = """
runpy.run_path(sys.argv[3], run_name="__main__")
"""


@dataclass(frozen=True, slots=True)
class GrammarCheckSetup:
    """What the child must know to compile as the engine does."""

    tokenizer_source: str  # a tokenizer.json: its path, or its text
    vocab_size: int
    num_ids: int  # of the tokenizer, if those are more; else the same
    eos_token_ids: list[int] | None
    limits: dict[str, Any]
    cpu_s: int
    memory_bytes: int = MEMORY_BYTES


class GrammarCheck:
    """One child for many grammars, started anew if a grammar has killed it; used by one thread."""

    def __init__(self, setup: GrammarCheckSetup) -> None:
        self._setup = setup
        self._child: ChildProcess | None = None

    def problem(self, grammar: str) -> str | None:
        """Return what is wrong with a grammar in llguidance's notation, None if it can be served.

        Raises `InvalidParams` if llguidance cannot use the checkpoint's tokenizer at all.
        """
        child = self._ready_child()
        answer = _ask(child, grammar)
        if answer is None:
            self.close()
            limit_s = self._setup.cpu_s
            return f"it takes more than {limit_s} s of processor time or too much memory; simplify it"
        problem = json.loads(answer)["problem"]
        return None if problem is None else str(problem)

    def interrupt(self) -> None:
        """Have the grammar that is being tried fail now; may be called from another thread."""
        child = self._child
        if child is not None:
            child.signal_kill()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _ready_child(self) -> ChildProcess:
        if self._child is not None and self._child.is_alive:
            return self._child
        self.close()
        self._child = ChildProcess(
            _PROGRAM,
            _CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            environment=NO_CARDS,
        )
        answer = _ask(self._child, asdict(self._setup))
        if answer is None:
            raise RuntimeError(f"the child that tries grammars does not start: {sys.executable} {_CHILD}")
        if (problem := json.loads(answer)["problem"]) is not None:
            raise InvalidParams(f"this checkpoint's tokenizer cannot follow grammars: {problem}")
        return self._child


def _ask(child: ChildProcess, question: object) -> str | None:
    """Send one line and return the child's answer, None if it dies or takes too long."""
    with suppress(OSError, ValueError):  # ValueError: another thread has closed its pipes
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        if select.select([child.stdout], [], [], _WALL_S)[0]:
            return child.stdout.readline() or None
    return None
