from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
LEAST = {
    "test_shrink_and_expand.py": 90,
    "test_embedding_add.py": 13,
    "test_engine.py": 9,
    "test_quick_interpreter.py": 4,
    "test_norms_and_gates.py": 60,
    "test_attention.py": 53,
    "test_draws.py": 32,
    "test_quantized_products.py": 53,
    "test_experts.py": 47,
    "test_sparse_engine.py": 1,
}
"""Tests that each file must have passed."""


def test_every_interpreted_file_is_run() -> None:
    assert {path.name for path in FOLDER.glob("test_*.py")} == set(LEAST)


@pytest.mark.timeout(1500)
def test_triton_kernels_do_under_the_interpreter_what_their_references_do() -> None:
    """TRITON_INTERPRET must be set before triton is imported, so these tests have a process of their own."""
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rp", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    passed = Counter(re.findall(r"^PASSED .*/(\w+\.py)::", finished.stdout, re.MULTILINE))
    assert all(passed[name] >= least for name, least in LEAST.items()), finished.stdout
