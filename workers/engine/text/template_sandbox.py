"""The sandbox of chat templates: Jinja as transformers sets it up, and no endless or huge rendering."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import Environment, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.engine.text.template_costs import (
    bound_call,
    bound_remainder,
    bound_sum,
    bounded,
    made,
    metered,
    weight,
)

MAX_RENDER_S = 1.0
MAX_RENDERED_CHARS = 4_000_000
_TEMPLATE = "<template>"
_ENDED_IN = (_TEMPLATE, str(Path(jinja2.__file__).parent), str(Path(__file__).parent))
"""Files in whose frames rendering is ended when its time is over."""
_MAX_PRODUCT = 100_000
"""What a template may multiply texts, lists and numbers (in bits) to, and the largest exponent."""


def rendered(pieces: Callable[[], Iterable[str]], clock: Callable[[], float] = time.thread_time) -> str:
    """Join what a template yields; raises `SecurityError` if that takes too long or becomes too much."""
    began_s = clock()

    def watch(frame: FrameType, _event: str, _arg: object) -> Any:
        filename = frame.f_code.co_filename
        # What is raised in a finalizer or in the collector's callbacks is lost, and ends the tracing.
        if filename.startswith(_ENDED_IN) and clock() - began_s > MAX_RENDER_S:
            raise SecurityError(f"it renders for more than {MAX_RENDER_S:g} s; repair its loops")
        return watch if filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with metered():
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
        finalize=_weighed,
    )
    environment.filters = {name: bounded(name, one) for name, one in environment.filters.items()}
    del environment.globals["lipsum"]  # makes as much text as it is asked for
    environment.filters["tojson"] = bounded("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _CodeGenerator(CodeGenerator):
    """Leaves to rendering what Jinja would print while it compiles."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            self.visit(bound or nodes.Const(None), frame)
        self.write(")")


def _weighed(value: object) -> object:
    """Let an output pass that makes no huge text."""
    weight(value)
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def concat(self, pieces: Iterable[str]) -> str:
        """Return what a block or a macro has written."""
        return made(_joined(pieces))

    def joined(self, parts: Iterable[object]) -> str:
        """Return what `~` makes of its operands."""
        weight(*parts)
        return made("".join(map(str, parts)))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return `value[start:stop:step]`."""
        return made(value[start:stop:step])

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what is safe to call and makes no huge text."""
        method = getattr(function, "__wrapped__", function)  # Jinja wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int):
            if args and isinstance(args[0], Iterator):
                args = ([*args[0]], *args[1:])
            bound_call(method.__name__, owner, [*args, *kwargs.values()])
        return made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(one) for one in (left, right) if isinstance(one, str | list | tuple)]
        counts = [abs(one) for one in (left, right) if isinstance(one, int)]
        if operator == "*" and sizes and max(sizes) * max(counts, default=1) > _MAX_PRODUCT:
            raise SecurityError(f"it multiplies a text or list beyond {_MAX_PRODUCT}; repair it")
        if operator == "**" and max(counts, default=0) > _MAX_PRODUCT:
            raise SecurityError(f"it raises numbers beyond {_MAX_PRODUCT}; repair it")
        if operator == "*" and sum(map(int.bit_length, counts)) > _MAX_PRODUCT:
            raise SecurityError(f"it multiplies numbers beyond {_MAX_PRODUCT} bits; repair it")
        if operator == "+":
            bound_sum(left, right)
        if operator == "%":
            bound_remainder(left, right)
        return made(super().call_binop(context, operator, left, right))


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
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return encoder.encode(value) if indent is None else _joined(encoder.iterencode(value))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
