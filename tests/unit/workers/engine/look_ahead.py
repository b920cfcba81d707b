"""Runs a module's tests twice: with engines that settle each step at once, and with such that look ahead."""

from __future__ import annotations

import pytest

BOTH = pytest.mark.parametrize(
    "look_ahead", [0, 1], indirect=True, scope="module", ids="look-ahead-{}".format
)
"""`pytestmark = BOTH` makes the `look_ahead` fixture, and thus the engines of `make_engine`, both in turn."""
