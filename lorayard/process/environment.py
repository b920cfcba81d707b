"""Words what is wrong with a process's environment, for the person who set it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

from pydantic import AfterValidator, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lorayard.contract.wording import told
from lorayard.process.stop_request import StopRequest
from lorayard.process.variables import unknown_variables

BAD_ENVIRONMENT = 2
"""Exit status of a process that was told nonsense: starting it again would not help."""

UNUSED_EXTRAS: Final = ("rich", "yaml", "httpx._main")
"""What libraries import because it is installed, and no service uses: colours and commands for a terminal, a
format that no message has. Without them a service has 3 to 5 MB less of its own."""


def _is_device(value: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise PydanticCustomError("device", "give cpu, cuda, or cuda:N for the N-th visible card, from 0")
    return value


DeviceName = Annotated[str, AfterValidator(_is_device)]
"""A settings field that names where an engine computes, as `LORAYARD_DEVICE` does."""


@contextmanager
def readable_settings(program: str) -> Iterator[None]:
    """End the process with one clear line if the settings read in the block are missing or wrong."""
    try:
        yield
    except ValidationError as error:
        message = settings_message(error)
        if message is None:
            raise
        refuse(program, message)


def refuse(program: str, message: str) -> NoReturn:
    """End the process with one clear line: starting it again as it is would not help."""
    print(f"{program}: {message}", file=sys.stderr)  # noqa: T201 - before there is a log
    raise SystemExit(BAD_ENVIRONMENT)


class ServiceSettings(BaseSettings):
    """What every service is told, before it reads what is its own."""

    model_config = SettingsConfigDict(
        env_prefix="LORAYARD_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    ready_file: Path | None = None
    hold_refused: bool = False


def leave_out_extras() -> None:
    """Have libraries find `UNUSED_EXTRAS` missing, which they allow; before anything else is imported."""
    for name in UNUSED_EXTRAS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # documented: None is "not to be found"


def withdraw_readiness() -> None:
    """Remove the ready file that an earlier run left behind: a restarted container keeps its files.

    A service's main module calls this before it imports the rest of the service, which may fail or be
    killed too. Ends the process with one clear line if the file cannot be removed.
    """
    with readable_settings("service"):
        ready_file = ServiceSettings().ready_file
    if ready_file is not None:
        try:
            ready_file.unlink(missing_ok=True)
        except OSError as error:
            refuse(
                "service", f"LORAYARD_READY_FILE={ready_file} of an earlier run cannot be removed: {error}"
            )


def run_service(main: Callable[[], int]) -> int:
    """Run a service; returns its exit status. Variables that look like ours and are none are told first.

    One that refuses what it was told ends, or stays until told to stop if `LORAYARD_HOLD_REFUSED` is set:
    containers have no restart policy that spares one exit status, and it would begin anew forever.
    """
    for unknown in unknown_variables(os.environ):
        print(f"warning: {unknown}", file=sys.stderr)  # noqa: T201 - before there is a log
    try:
        status = main()
    except SystemExit as refused:
        if refused.code != BAD_ENVIRONMENT:
            raise
        status = BAD_ENVIRONMENT
    with readable_settings("service"):
        is_held = status == BAD_ENVIRONMENT and ServiceSettings().hold_refused
    if is_held:
        stop = StopRequest()
        stop.listen()
        print("refused, and held until stopped: correct it and start this anew", file=sys.stderr)  # noqa: T201
        stop.wait()
    return status


def settings_message(error: ValidationError) -> str | None:
    """Word what is wrong with the environment; other validations have their own errors."""
    if not error.title.endswith("Settings"):
        return None
    problems = error.errors(include_url=False)
    missing = [_variable(problem["loc"][0]) for problem in problems if problem["type"] == "missing"]
    wrong = [
        f"{told(_variable(problem['loc'][0]), problem['input'])}: "
        f"{problem['msg'].removeprefix('Value error, ')}"
        for problem in problems
        if problem["type"] != "missing"
    ]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        remedy = "export what is missing; beside `lorayard up`, source the file that it names"
        wrong.append(f"{', '.join(missing)} {verb} not set: {remedy}")
    return "; ".join(wrong)


def _variable(location: int | str) -> str:
    """Name the environment variable of a settings field."""
    name = str(location)
    return name if name.isupper() else f"LORAYARD_{name.upper()}"
