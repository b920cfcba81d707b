from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_triton_kernels_equal_their_references_under_the_interpreter() -> None:
    """TRITON_INTERPRET must be set before triton is imported, so these tests have their own process."""
    folder = Path(__file__).parent / "interpreted"

    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    passed = re.search(r"(\d+) passed", finished.stdout)
    assert passed, finished.stdout
    assert int(passed[1]) >= 40
