"""Threads are made in one place, so that none can die unseen: a new hand-made one fails here."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("lorayard", "scheduler", "workers", "kernels", "db")

MAKERS = {
    "lorayard/process/service_thread.py": "the one way",
    "lorayard/client/listener.py": "in a producer's process, not ours to drain; waiters hear of a failure",
    "lorayard/client/token_reader.py": "as the listener; whoever reads hears of a failure",
    "workers/engine/core/child_process.py": "outlives a child; the engine imports nothing of lorayard",
    "workers/engine/lora/residency/copier.py": "whoever waits for a copy is told why the thread stopped",
    "workers/engine/structured_output/compiler.py": "the engine is fenced; a form starts another",
    "workers/webhooks/lookup.py": "one look-up each, which may hang; its future tells of a failure",
}
"""Files that may construct a thread, and why."""

SERVICE_THREADS = {
    "workers/event_publisher.py": "event-publisher",
    "workers/arrivals.py": "arrivals",
    "workers/commands.py": "commands",
    "workers/committer.py": "committer",
    "workers/engine_host.py": "engine-pump",
    "workers/engine_watch.py": "engine-watch",
    "workers/feeder.py": "feeder",
    "workers/lease.py": "lease",
    "workers/service.py": "drain",
    "workers/token_writer.py": "token-writer",
    "scheduler/adapter_collector.py": "adapter-files",
    "scheduler/flower_reporter.py": "flower",
    "scheduler/revokes.py": "revokes",
    "scheduler/term.py": "term",
}
"""Each is made to fail in tests/integration: once, and service goes on; forever, and the process drains."""


@cache
def written() -> list[tuple[str, ast.Call | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Read the product, once: its calls and functions, each with its file."""
    return [
        (str(path.relative_to(ROOT)), node)
        for room in PRODUCT
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Call, ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def calls(name: str) -> dict[str, list[ast.Call]]:
    """Find the calls of a name, or of an attribute of that name, by file."""
    found: dict[str, list[ast.Call]] = {}
    for file, node in written():
        if isinstance(node, ast.Call) and _called(node.func) == name:
            found.setdefault(file, []).append(node)
    return found


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def test_only_named_files_make_threads() -> None:
    assert set(calls("Thread")) == set(MAKERS)


def test_every_service_thread_is_known_by_name() -> None:
    names = {
        file: [call.args[0].value for call in made if isinstance(call.args[0], ast.Constant)]
        for file, made in calls("ServiceThread").items()
    }

    assert names == {file: [name] for file, name in SERVICE_THREADS.items()}
