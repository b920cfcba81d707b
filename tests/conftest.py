"""Gives tests real servers: one Redis and one Postgres a run, a database of each to every test.

Imports are inside the fixtures, so that a unit test neither pays for the servers nor depends on them.
"""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from lorayard.local import Stack

_TEMPLATE = "lorayard_template"
# Database 0 is left to whoever looks at the server by hand.
_REDIS_DATABASES = itertools.cycle(range(1, 64))
_NUMBERS = itertools.count(1)

# How fast the machine is decides nothing: a test that hangs is ended by pytest's own limit.
settings.register_profile("lorayard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lorayard")


# Nothing here compiles: bitsandbytes would import all of torch's compiler, a third of importing PEFT.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

# What is imported stays: looking for garbage in it takes a third of the time that importing it takes.
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage again, though never among what has been imported."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Emulate another processor in this whole run, if asked to by the environment."""
    if wanted := os.environ.get("LORAYARD_TESTS_EMULATE"):
        from tests.emulated import library, products

        runs = {library.LEVEL: library.whole_run, products.NAME: products.whole_run}
        if wanted not in runs:
            raise pytest.UsageError(f"LORAYARD_TESTS_EMULATE is {wanted!r}; give one of {', '.join(runs)}")
        stack = ExitStack()
        stack.enter_context(runs[wanted]())
        config.add_cleanup(stack.close)


@pytest.fixture(scope="session")
def new_state_dir() -> Iterator[Callable[[], Path]]:
    """Make state directories for stacks that outlive a test; they go with the run."""
    with _reachable_folder() as folder:
        yield lambda: folder / f"state-{next(_NUMBERS)}"


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state directory for a stack of the test's own."""
    with _reachable_folder() as folder:
        yield folder / "state"


@pytest.fixture(scope="session")
def _initialised() -> Iterator[Path]:
    """The state directory of a Postgres that has run and stopped: copying it is quicker than initdb."""
    from lorayard.local import Stack, StackConfig

    with _reachable_folder() as folder:
        config = StackConfig(state_dir=folder / "state", parts=frozenset({"postgres"}), durable=False)
        with Stack(config):
            pass
        yield config.state_dir


@pytest.fixture(scope="session")
def new_initialised_dir(_initialised: Path, new_state_dir: Callable[[], Path]) -> Callable[[], Path]:
    """Make state directories whose Postgres need not be initialised, for tests of other things."""

    def make() -> Path:
        folder = new_state_dir()
        folder.mkdir(mode=0o711)
        parts = [_initialised / "postgres", _initialised / "postgres_password"]
        subprocess.run(["cp", "-a", *parts, folder], check=True)
        return folder

    return make


@pytest.fixture(scope="session")
def servers(new_initialised_dir: Callable[[], Path]) -> Iterator[Stack]:
    """One Redis and one Postgres for the whole run; a test that stops servers starts its own stack."""
    from lorayard.local import SERVERS, Stack, StackConfig

    with Stack(StackConfig(state_dir=new_initialised_dir(), parts=SERVERS, durable=False)) as stack:
        yield stack


@contextmanager
def _reachable_folder() -> Iterator[Path]:
    """A folder that Postgres, under a user of its own, can reach; pytest's folders it cannot."""
    with tempfile.TemporaryDirectory(prefix="lorayard-tests-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def redis_url(servers: Stack) -> str:
    """An empty logical database of the run's Redis."""
    import redis

    url = servers.redis.url_of(next(_REDIS_DATABASES))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def empty_database_url(servers: Stack) -> Iterator[str]:
    """A database without tables in the run's Postgres."""
    yield from _database(servers, "template0")


@pytest.fixture
def database_url(servers: Stack, migrated_template: str) -> Iterator[str]:
    """A database with the newest schema and no rows in the run's Postgres."""
    yield from _database(servers, migrated_template)


@pytest.fixture(scope="module")
def shared_database_url(servers: Stack, migrated_template: str) -> Iterator[str]:
    """A database like that of `database_url`, for tests of one file that change nothing in it."""
    yield from _database(servers, migrated_template)


@pytest.fixture(scope="session")
def migrated_template(servers: Stack) -> str:
    """The name of a migrated database, copied for every test because a copy is quicker than a migration."""
    from db.migrate import upgrade

    _execute(servers, f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
    upgrade(servers.postgres.url_of(_TEMPLATE))
    return _TEMPLATE


def _database(servers: Stack, template: str) -> Iterator[str]:
    name = f"test_{next(_NUMBERS)}"
    # Copied by blocks it would go through the write-ahead log, which takes half as long again.
    _execute(servers, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield servers.postgres.url_of(name)
    _execute(servers, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(servers: Stack, statement: str) -> None:
    import psycopg

    from lorayard.local import plain_url

    with psycopg.connect(plain_url(servers.postgres.url), autocommit=True) as connection:
        connection.execute(statement)
