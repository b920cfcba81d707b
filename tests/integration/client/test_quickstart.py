"""The example that the README shows runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.client.tiny_leader import TinyLeader, put_adapter

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "quickstart.py"


def test_the_readme_shows_the_example() -> None:
    code = EXAMPLE.read_text().partition('"""\n\n')[2]

    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()


def test_the_example_prints_an_answer_for_each_job(pool_url: str) -> None:
    put_adapter(pool_url, "reverse", "active")

    with TinyLeader(pool_url) as leader:
        ran = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            env={**os.environ, "LORAYARD_REDIS_URL": pool_url, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert ran.returncode == 0, ran.stderr
    first, *others = ran.stdout.splitlines()
    assert first == "HELLO>"
    assert sorted(others) == sorted(
        f"{job_id} {text}" for job_id, text in zip(leader.order[1:], ("POT>", "STAR>"), strict=True)
    )
