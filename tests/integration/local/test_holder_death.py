"""Nothing of a stack is left when the process that holds it is killed, whoever it ran as."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from lorayard.local import SERVERS, Stack, StackConfig, StateDirectoryBusy
from lorayard.local.postgres_home import server_user
from lorayard.local.processes import ProcessIdentity
from tests.polling import eventually

_HOLDER = Path(__file__).with_name("holder.py")
_REPOSITORY = Path(__file__).parents[3]


class Holder(NamedTuple):
    process: subprocess.Popen[str]
    family: list[ProcessIdentity]
    watchdog: int

    def left(self) -> list[ProcessIdentity]:
        return [identity for identity in self.family if identity.is_running()]


StartHolder = Callable[..., Holder]


@pytest.fixture
def start_holder(state_dir: Path) -> Iterator[StartHolder]:
    holders: list[Holder] = []

    def start(*prefix: str) -> Holder:
        process = subprocess.Popen(
            [*prefix, sys.executable, str(_HOLDER), str(state_dir)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        )
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        holders.append(Holder(process, [ProcessIdentity(*row) for row in line["family"]], line["watchdog"]))
        return holders[-1]

    yield start
    for holder in holders:
        holder.process.kill()
        holder.process.communicate()


def test_no_process_is_left_when_the_holder_is_killed(start_holder: StartHolder) -> None:
    holder = start_holder()
    # Redis, Postgres with its own processes, the watchdog, a child and the child's child.
    assert len(holder.left()) >= 8

    holder.process.kill()

    eventually(lambda: not holder.left(), what="the end of every process")


def test_the_direct_children_die_even_when_the_watchdog_was_killed_before(start_holder: StartHolder) -> None:
    holder = start_holder()
    direct = [identity for identity in holder.left() if identity.pid != holder.watchdog]
    os.kill(holder.watchdog, signal.SIGKILL)

    holder.process.kill()

    # Nobody is left to end what a child had started; the child itself and both servers end all the same.
    eventually(lambda: len([one for one in direct if one.is_running()]) <= 1, what="the children's end")
    for identity in direct:
        identity.send(signal.SIGKILL)


def test_a_second_stack_on_the_same_directory_is_refused_by_name(
    start_holder: StartHolder, state_dir: Path
) -> None:
    holder = start_holder()

    with pytest.raises(StateDirectoryBusy, match=rf"pid {holder.process.pid} .*holder.py"):
        Stack(StackConfig(state_dir=state_dir, parts=SERVERS)).start()

    assert holder.process.poll() is None
    assert len(holder.left()) >= 8


def test_the_directory_of_a_killed_holder_serves_the_next_one_with_its_data(
    start_holder: StartHolder, state_dir: Path
) -> None:
    holder = start_holder()
    holder.process.kill()
    holder.process.wait()

    with (
        Stack(StackConfig(state_dir=state_dir, parts=SERVERS, durable=False)) as stack,
        redis.Redis.from_url(stack.redis.url) as client,
    ):
        assert client.ping()

    assert not holder.left()


def test_another_user_than_root_can_run_the_servers(start_holder: StartHolder, state_dir: Path) -> None:
    holder = start_holder(*_become_another_user(state_dir))

    assert len(holder.left()) >= 8
    assert 0 not in {Path(f"/proc/{identity.pid}").stat().st_uid for identity in holder.left()}
    holder.process.kill()
    eventually(lambda: not holder.left(), what="the end of every process")


def _become_another_user(state_dir: Path) -> list[str]:
    """The command that runs another one as an ordinary user, who may read the interpreter under /root."""
    if os.geteuid() != 0:
        return []
    user = server_user()
    state_dir.mkdir()
    os.chown(state_dir, user.uid, user.gid)
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", *may_read]
