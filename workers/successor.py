"""Begins the next incarnation of this worker in the same process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import structlog

from lorayard.process.stop_request import StopRequest, hold_back

logger = structlog.get_logger(__name__)


def start_again(stop: StopRequest, variables: Mapping[str, str] | None = None) -> None:
    """Become a new process with a new incarnation: no state of the old one can leak into it.

    It is told `variables` besides what this one was. Returns if this process is to stop.
    """
    hold_back()  # a signal from here on is for the next incarnation, if there is one
    if stop.is_set():
        return
    logger.info("worker.restarting")
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **(variables or {})})  # noqa: S606
