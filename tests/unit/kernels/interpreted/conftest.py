"""Kernels under Triton's interpreter: collected only where TRITON_INTERPRET=1 was set from the start."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    # `test_interpreter.py`, one folder up, runs this folder in a process of its own.
    collect_ignore_glob = ["test_*.py"]
