"""What `lorayard up` shows can be copied, however narrow the terminal, or where there is none."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from lorayard.local.up import _console, _show_addresses


def test_no_name_or_address_is_folded_in_two(tmp_path: Path) -> None:
    folder = tmp_path / "a-state-directory-with-a-long-name"
    folder.mkdir()
    stack: Any = SimpleNamespace(
        client_env=lambda: {"LORAYARD_REDIS_URL": "redis://127.0.0.1:1/0"},
        config=SimpleNamespace(state_dir=folder, card_of=lambda _number: "GPU-" + "8" * 36),
        children={name: SimpleNamespace(pid=1_234_567) for name in ("flower", "worker-1")},
        flower=SimpleNamespace(port=54_321),
    )
    shown = StringIO()

    _show_addresses(cast("Any", stack), Console(file=shown, width=40))

    lines = shown.getvalue().splitlines()
    assert any("worker-1" in line and "GPU-" + "8" * 36 in line for line in lines)
    assert any("http://127.0.0.1:54321 (user and password: LORAYARD_FLOWER_URL" in line for line in lines)
    assert any(str(folder / "client.env") in line for line in lines)


def test_a_pipe_is_no_terminal_of_80_columns() -> None:
    assert _console().width >= 200
