"""The sandbox of chat templates: Jinja as transformers sets it up, and no endless or huge rendering."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDER_S = 1.0
MAX_RENDERED_CHARS = 4_000_000
_MAX_PRODUCT = 100_000
"""What a template may multiply texts and lists to, and the largest exponent."""


def rendered(pieces: Callable[[], Iterable[str]], clock: Callable[[], float] = time.thread_time) -> str:
    """Join what a template yields; raises `SecurityError` if that takes too long or becomes too much."""
    began_s = clock()

    def watch(frame: FrameType, _event: str, _arg: object) -> Any:
        if clock() - began_s > MAX_RENDER_S:
            raise SecurityError(f"it renders for more than {MAX_RENDER_S:g} s; repair its loops")
        return watch if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return _joined(pieces())
    finally:
        sys.settrace(before)


def _joined(pieces: Iterable[str]) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_RENDERED_CHARS:
            raise SecurityError(f"it renders more than {MAX_RENDERED_CHARS} characters; repair its loops")
        parts.append(piece)
    return "".join(parts)


def sandbox() -> Environment:
    """Return the environment in which transformers' templates mean what they mean there."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        autoescape=False,
        optimized=False,  # constants too are computed while rendering, where time is watched
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _CodeGenerator(CodeGenerator):
    """Leaves to rendering what Jinja would print while it compiles."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(one) for one in (left, right) if isinstance(one, str | list | tuple)]
        counts = [abs(one) for one in (left, right) if isinstance(one, int)]
        if operator == "*" and sizes and max(sizes) * max(counts, default=1) > _MAX_PRODUCT:
            raise SecurityError(f"it multiplies a text or list beyond {_MAX_PRODUCT}; repair it")
        if operator == "**" and max(counts, default=0) > _MAX_PRODUCT:
            raise SecurityError(f"it raises numbers beyond {_MAX_PRODUCT}; repair it")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - how Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
