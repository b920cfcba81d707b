"""`lorayard submit`: one job from the shell."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from lorayard.cli.output import printable
from lorayard.cli.request_options import chosen, with_request_options
from lorayard.contract.errors import InvalidJob
from lorayard.contract.request import NEUTRAL
from lorayard.contract.result import JobResult
from lorayard.contract.states import JobState


@with_request_options
def submit(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    adapter: Annotated[str | None, typer.Option(help="The adapter's name; none is the base model.")] = None,
    priority: Annotated[str, typer.Option(help="high, normal or low.")] = "normal",
    deadline_s: Annotated[float | None, typer.Option(help="First token within so many seconds.")] = None,
    tenant: Annotated[str, typer.Option(help="Whom the job belongs to.")] = "default",
    callback_url: Annotated[str | None, typer.Option(help="Receives a signed webhook at the end.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key is the same job.")] = None,
    metadata: Annotated[str, typer.Option(help="A JSON object that comes back with the result.")] = "{}",
    model: Annotated[str | None, typer.Option(help="The model or pool, if there are several.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end.")] = True,
    timeout: Annotated[float | None, typer.Option(help="Wait at most so many seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **request: Any,
) -> None:
    """Submit one job and print its output; status 1 if it does not succeed."""
    fields: dict[str, Any] = chosen(request) | {
        "adapter": adapter, "priority": priority, "deadline_s": deadline_s, "tenant": tenant,
        "callback_url": callback_url, "idempotency_key": idempotency_key,
        "metadata": parse_metadata(metadata),
    }  # fmt: skip
    from lorayard.client import Client

    with Client.from_env(model=model) as client:
        handle = client.submit(sys.stdin.read() if prompt == "-" else prompt, **fields)
        if not wait:
            typer.echo(json.dumps({"job_id": str(handle.id)}) if as_json else str(handle.id))
            return
        result = handle.result(timeout, raise_on_failure=False)
    show_result(result, as_json=as_json)
    if result.state is not JobState.SUCCEEDED:
        raise typer.Exit(1)


def parse_metadata(text: str) -> dict[str, Any]:
    """Read the --metadata option; raises InvalidJob."""
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise InvalidJob(f"--metadata {text!r} is not JSON ({error}): give e.g. '{{\"run\": 7}}'") from error
    if not isinstance(metadata, dict):
        raise InvalidJob(f"--metadata {text!r} is no JSON object: give e.g. '{{\"run\": 7}}'")
    return metadata


def show_result(result: JobResult, *, as_json: bool) -> None:
    """Print the output on standard output, and what else is known beside it."""
    if as_json:
        typer.echo(result.model_dump_json())
        return
    if result.output is not None:
        typer.echo(result.output)
    typer.secho(summary(result), err=True, dim=True)


def summary(result: JobResult) -> str:
    """Say in one line how a job went, and which sampling parameters had a say in it."""
    parts = [f"job {result.job_id} {result.state}"]
    if result.error is not None:
        parts.append(f"{result.error.code}: {result.error.message}")
    if result.state is JobState.SUCCEEDED:
        parts.append(f"{result.prompt_tokens} + {result.completion_tokens} tokens")
    parts += [
        f"{name} {value:g}"
        for name, value in (result.sampling or {}).items()
        if value != NEUTRAL.get(name, 0)
    ]
    timings = (("queued", result.queue_ms), ("ran", result.run_ms))
    parts += [f"{what} {ms:.0f} ms" for what, ms in timings if ms is not None]
    parts += [f"warning: {warning}" for warning in result.warnings]
    return printable(", ".join(parts))
