"""Makes options of the command line from the fields of a request, so that a new field has one by itself."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from lorayard.contract.errors import InvalidJob
from lorayard.contract.request import NEUTRAL, GenerationRequest

NOT_OPTIONS = frozenset({"prompt", "messages", "stream"})
"""The prompt is the argument; a chat and a stream are for programs."""


def option_names() -> list[str]:
    """Name the fields that have an option each."""
    return [name for name in GenerationRequest.model_fields if name not in NOT_OPTIONS]


def with_request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of its `**request`, one option for each field; what is not given is None."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in signature.parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    made = [_option(name) for name in option_names()]
    vars(command)["__signature__"] = signature.replace(parameters=own + made)
    return command


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, as values of their fields; raises InvalidJob."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: _from_json(name, value) if _is_json(name) else value for name, value in given.items()}


def _option(name: str) -> inspect.Parameter:
    option = typer.Option(help=_help(name), show_default=False)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[_kind(name) | None, option])


def _help(name: str) -> str:
    """Say what a field does, how the shell gives it, and what holds if it is left out."""
    field = GenerationRequest.model_fields[name]
    text = str(field.description)
    if _is_json(name):
        text += ", as JSON"
    elif get_origin(_kind(name)) is list:
        text += "; may be repeated"
    if name in NEUTRAL:
        return f"{text[0].upper()}{text[1:]}. By default the model's own, else {NEUTRAL[name]}."
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, (), {}) else f" By default {str(default).lower()}."
    return f"{text[0].upper()}{text[1:]}.{shown}"


def _kind(name: str) -> Any:
    """Choose what the shell gives for a field: a value, several, or the text of a JSON value."""
    kind = _plain(GenerationRequest.model_fields[name].annotation)
    if kind in (bool, int, float, str):
        return kind
    if get_origin(kind) is tuple and (item := _plain(get_args(kind)[0])) in (int, float, str):
        return list[item]  # type: ignore[valid-type]
    return str


def _is_json(name: str) -> bool:
    return _kind(name) is str and _plain(GenerationRequest.model_fields[name].annotation) is not str


def _plain(annotation: Any) -> Any:
    """Strip limits and None from an annotation."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        (kind,) = [arm for arm in get_args(annotation) if arm is not NoneType]
        return _plain(kind)
    return annotation


def _from_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        option = f"--{name.replace('_', '-')}"
        raise InvalidJob(f"{option} {text!r} is not JSON ({error}): quote it as a whole") from error
