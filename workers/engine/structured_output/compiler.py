"""Compiles grammars beside the engine's loop: each once, after a child process has shown that it can be."""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from workers.engine.core.errors import InvalidParams
from workers.engine.core.structured_outputs import GrammarSpec, StructuredOutputsParams
from workers.engine.structured_output.grammar import Grammar, first_line
from workers.engine.structured_output.grammar_check import CPU_S, GrammarCheck, GrammarCheckSetup

MAX_CACHED_GRAMMARS = 128
MAX_WAITING_GRAMMARS = 64
LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 250_000,
    "verbose_errors": False,
}
"""llguidance's own bounds; its defaults allow four times the work for one token."""
_CLOSE_S = 5.0
_Queue = SimpleQueue[tuple[GrammarSpec, Future[LLMatcher]] | None]
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n\t]{0,16}"}
"""A model could otherwise write spaces until its last token."""


class GrammarCompiler:
    """Grammars by their text, the latest ones kept; one background thread, started with the first grammar.

    `close`, garbage collection and exit all end the thread and its child: the thread holds no compiler.
    A thread that died has said so on standard error; its grammar fails, and the next one starts another.
    """

    def __init__(
        self,
        tokenizer_source: str | Path,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        num_token_ids: int = 0,
    ) -> None:
        """`tokenizer_source` is a tokenizer.json, its path or its text; it has `num_token_ids` ids."""
        self._source = str(tokenizer_source)
        self._vocab_size = vocab_size
        self._num_ids = max(vocab_size, num_token_ids)
        self._eos_token_ids = sorted(eos_token_ids) or None  # None: what the tokenizer itself says
        self._compiled: OrderedDict[GrammarSpec, Future[LLMatcher]] = OrderedDict()
        self._queue: _Queue = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._end: weakref.finalize[..., GrammarCompiler] | None = None
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_problem = ""
        try:
            # Here and not at the first grammar: 128,000 tokens take seconds, and nothing else runs meanwhile.
            self._tokenizer = LLTokenizer(self._source, n_vocab=self._num_ids, eos_token=self._eos_token_ids)
        except ValueError as error:
            self._tokenizer_problem = first_line(str(error))

    def grammar(self, params: StructuredOutputsParams) -> Grammar:
        """Return the state of a new completion with this grammar, which may still have to be compiled."""
        if self._tokenizer is None:
            raise InvalidParams(
                f"this checkpoint's tokenizer cannot follow grammars: {self._tokenizer_problem}; "
                "leave structured_outputs out"
            )
        return Grammar(self._compiled_for(params.source), self._vocab_size, self._num_ids)

    def close(self) -> None:
        """Stop compiling."""
        if self._thread is not None and self._end is not None:
            self._end()
            self._thread.join(_CLOSE_S)

    def _compiled_for(self, source: GrammarSpec) -> Future[LLMatcher]:
        if (known := self._compiled.get(source)) is not None:
            self._compiled.move_to_end(source)
            return known
        if sum(not compiled.done() for compiled in self._compiled.values()) >= MAX_WAITING_GRAMMARS:
            raise InvalidParams(
                f"{MAX_WAITING_GRAMMARS} grammars are waiting to be compiled; try again later"
            )
        compiled = self._compiled[source] = Future()
        if len(self._compiled) > MAX_CACHED_GRAMMARS:
            self._compiled.popitem(last=False)  # whoever waits for it holds it
        self._queue.put((source, compiled))
        self._start()
        return compiled

    def _start(self) -> None:
        if self._is_idle() and self._tokenizer is not None:
            check, is_closed = GrammarCheck(self._setup()), threading.Event()
            self._thread = threading.Thread(
                target=_serve,
                args=(self._queue, check, self._tokenizer, is_closed),
                name="grammars",
                daemon=True,
            )
            self._thread.start()
            self._end = weakref.finalize(self, _end, self._queue, check, is_closed)

    def _is_idle(self) -> bool:
        """Whether a thread is wanting: none was started, or it died without being told to."""
        if self._thread is None or self._end is None:
            return True
        return self._end.alive and not self._thread.is_alive()

    def _setup(self) -> GrammarCheckSetup:
        return GrammarCheckSetup(
            tokenizer_source=self._source,
            vocab_size=self._vocab_size,
            num_ids=self._num_ids,
            eos_token_ids=self._eos_token_ids,
            limits=LIMITS,
            cpu_s=CPU_S,
        )


def _serve(queue: _Queue, check: GrammarCheck, tokenizer: LLTokenizer, is_closed: threading.Event) -> None:
    try:
        while (job := queue.get()) is not None and not is_closed.is_set():
            source, compiled = job
            try:
                compiled.set_result(_compile(check, tokenizer, source))
            except InvalidParams as error:
                compiled.set_exception(error)
            except BaseException as error:
                # Whatever it is, the request must hear of it.
                compiled.set_exception(InvalidParams(f"the {source.kind} cannot be compiled: {error}"))
                if not isinstance(error, Exception):
                    raise
    finally:
        check.close()


def _end(queue: _Queue, check: GrammarCheck, is_closed: threading.Event) -> None:
    is_closed.set()
    queue.put(None)
    check.interrupt()


def _compile(check: GrammarCheck, tokenizer: LLTokenizer, source: GrammarSpec) -> LLMatcher:
    try:
        grammar = llguidance_text(source)
    except ValueError as error:
        raise InvalidParams(f"the {source.kind} is refused: {first_line(str(error))}") from error
    if (problem := check.problem(grammar)) is not None:
        raise InvalidParams(f"the {source.kind} is refused: {first_line(problem)}")
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))


def llguidance_text(source: GrammarSpec) -> str:
    """Return a grammar as llguidance reads it."""
    kind, text = source
    if kind == "json":
        return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]  # its stub names fewer options
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choice":
        text = "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in json.loads(text))
    return LLMatcher.grammar_from_lark(text)
