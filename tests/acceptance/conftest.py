"""Gives acceptance tests one whole stack, which every test leaves running with two workers.

What is killed comes last: `test_flower.py` asks for both workers by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from db import Database
from examples.demo.stage import add_shipped_adapters, await_catalogue, stack_config
from lorayard import Client
from lorayard.local import Stack
from tests.acceptance.stack_rig import StackRig


@pytest.fixture(scope="package")
def rig(new_state_dir: Callable[[], Path]) -> Iterator[StackRig]:
    """Everything, on the shipped model, with an append-only Redis; a store that failed has a short pause."""
    config = replace(
        stack_config(new_state_dir()), flower_control=True, extra_env={"LORAYARD_ADAPTER_PAUSE_S": "1"}
    )
    with Stack(config) as stack:
        env = stack.client_env()
        database = Database(env["LORAYARD_DATABASE_URL"], name="acceptance")
        add_shipped_adapters(database, env)
        database.dispose()
        with Client(env["LORAYARD_REDIS_URL"]) as client:
            await_catalogue(client)
            yield StackRig(stack, client)
