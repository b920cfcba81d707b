"""One pair of servers, one leader and one worker process, which most tests of workers share."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.workers.scripted_leader import TINY, ScriptedLeader
from tests.integration.workers.worker_process import WorkerProcess

if TYPE_CHECKING:
    from lorayard.local import Stack

_FOLDERS = itertools.count(1)


@pytest.fixture(scope="package")
def rig(new_initialised_dir: Callable[[], Path]) -> Iterator[Stack]:
    """A Redis and a Postgres of these tests' own, to be restarted at will."""
    from db.migrate import upgrade
    from lorayard.local import SERVERS, Stack, StackConfig

    with Stack(StackConfig(state_dir=new_initialised_dir(), parts=SERVERS, durable=False)) as stack:
        upgrade(stack.postgres.url)
        yield stack


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model, the adapter store and the workers' logs are."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="package")
def model(folder: Path) -> Path:
    """The shipped model, told that it may go on for long, and to sample from one token by default."""
    copy = folder / "model"
    shutil.copytree(TINY / "base", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20_000}))
    generation = json.loads((copy / "generation_config.json").read_text())
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 1}
    (copy / "generation_config.json").write_text(json.dumps(generation | defaults))
    return copy


@pytest.fixture(scope="package")
def leader(rig: Stack, folder: Path, model: Path) -> Iterator[ScriptedLeader]:
    """The leader's part."""
    leader = ScriptedLeader(rig.redis.url, rig.postgres.url, folder / "store", model)
    yield leader
    leader.close()


@pytest.fixture(scope="package")
def start_worker(rig: Stack, folder: Path, model: Path) -> Callable[..., WorkerProcess]:
    """Make a worker process; enter it to start it."""

    def make(**settings: object) -> WorkerProcess:
        settings = {"max_model_len": 20_000, "max_num_seqs": 8, "num_kv_blocks": 4000} | settings
        own = folder / f"worker-{next(_FOLDERS)}"
        return WorkerProcess(rig.redis.url, rig.postgres.url, folder / "store", model, own, **settings)

    return make


@pytest.fixture(scope="package")
def worker(start_worker: Callable[..., WorkerProcess]) -> Iterator[WorkerProcess]:
    """The worker process that most tests share."""
    with start_worker() as process:
        process.await_ready()
        yield process


@pytest.fixture
def incarnation(worker: WorkerProcess, leader: ScriptedLeader) -> str:
    """The shared worker's incarnation of the day."""
    return worker.incarnation(leader)
