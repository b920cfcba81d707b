"""What the check's child runs: compile each grammar, write a few tokens by it, and answer what was wrong.

A script of its own that loads nothing of the engine; it limits its own time and memory.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import sys
import time
from typing import Any

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_NUM_TOKENS = 48
_MAX_TOKEN_S = 0.25


def main() -> None:
    """Answer one line per line; the first one is the setup."""
    gc.enable()  # `ChildProcess` puts it off
    os.nice(10)
    setup = json.loads(sys.stdin.readline())
    try:
        tokenizer = LLTokenizer(
            setup["tokenizer_source"], n_vocab=setup["num_ids"], eos_token=setup["eos_token_ids"]
        )
    except ValueError as error:
        _answer({"problem": str(error)})
        return
    limits = LLParserLimits(**setup["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"], setup["memory_bytes"]))
    _answer({"problem": None})
    for line in sys.stdin:
        _allow_s(setup["cpu_s"])
        matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        _answer({"problem": matcher.get_error() or _trial(matcher, setup)})


def _trial(matcher: LLMatcher, setup: dict[str, Any]) -> str | None:
    """Write tokens that the model has at random; return what made that impossible or slow."""
    mask = np.zeros((1, -(-setup["num_ids"] // 32)), dtype=np.int32)
    choose = random.Random(0)  # noqa: S311 - any token will do
    for _ in range(_NUM_TOKENS):
        if matcher.is_stopped():
            break
        began_s = time.thread_time()
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: setup["vocab_size"]]
        allowed = np.flatnonzero(bits)
        if matcher.is_error() or not len(allowed):
            return matcher.get_error() or "no text satisfies it"
        matcher.consume_token(int(choose.choice(allowed)))
        took_s = time.thread_time() - began_s
        if matcher.is_error():
            return str(matcher.get_error())
        if took_s > _MAX_TOKEN_S:
            return f"one token takes {took_s:.2f} s, at most {_MAX_TOKEN_S:g} s are given; simplify it"
    return None


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201 - the answer to the parent


def _allow_s(cpu_s: int) -> None:
    """Let the kernel end this process after so much more processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
