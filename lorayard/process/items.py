"""Lets one item of several fail alone, logged with its ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from lorayard.process.logs import worded

logger = structlog.get_logger(__name__)


@contextmanager
def one_item(where: str, passes: Callable[[Exception], bool], **ids: object) -> Iterator[None]:
    """End what raises in the block with a line in the log; what `passes` says nothing of the item."""
    try:
        yield
    except Exception as error:
        if passes(error):
            raise
        # Whatever it was, the next item must have its turn.
        logger.exception("item.failed", where=where, error=worded(error), **ids)
