"""Hands on the environment that the stack's processes start from."""

from __future__ import annotations

import os


def inherited_environment() -> dict[str, str]:
    """Return this process's environment as it is: PATH, HOME, devices, thread counts and the like.

    Not configuration: nothing of it is interpreted here.
    """
    return dict(os.environ)
