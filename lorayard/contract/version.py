"""The release of this process, which writers name in their messages so that a refusal can name both ends."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("lorayard")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


RELEASE = _installed()
