"""The `lorayard` command in a shell of its own: a ledger, a store, and the shipped base model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from db import Database
from db.secrets import new_key
from lorayard.cli import main

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples" / "tiny" / "base"
ADAPTERS = ROOT / "examples" / "tiny" / "adapters"


class Ran(NamedTuple):
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def store(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The adapter store of an environment such as `lorayard up` names."""
    folder = tmp_path / "store"
    variables = {
        "DATABASE_URL": database_url,
        "MODEL": str(BASE),
        "DTYPE": "float32",
        "ADAPTER_STORE": str(folder),
        "MAX_LORA_RANK": "16",
        "SECRET_KEY": new_key(),
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"LORAYARD_{name}", value)
    return folder


@pytest.fixture
def lorayard(store: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command with these arguments."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The ledger that the command works on."""
    database = Database(database_url)
    yield database
    database.dispose()
