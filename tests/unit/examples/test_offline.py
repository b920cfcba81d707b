"""The engine's example in the README runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "offline.py"


def test_the_readme_shows_the_example() -> None:
    code = EXAMPLE.read_text().partition('"""\n\n')[2]

    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()


def test_the_example_answers_with_the_adapter_and_with_the_base() -> None:
    command = [sys.executable, "-m", "examples.offline"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "['HELLO', 'hello']"
