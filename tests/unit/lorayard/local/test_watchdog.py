"""The watchdog ends the groups that it follows, those alone, when its pipe closes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lorayard.local.processes import ProcessIdentity, identify
from lorayard.local.watchdog import Watchdog

# As if their holder's death signal had ended the leader and left its helper.
_LEADER_GONE = "import subprocess; p = subprocess.Popen(['/bin/sleep', '600']); print(p.pid, flush=True)"


@pytest.fixture
def group() -> Iterator[tuple[ProcessIdentity, ProcessIdentity]]:
    """A dead leader and a living helper in its process group."""
    leader = subprocess.Popen(
        [sys.executable, "-c", _LEADER_GONE], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    identity = identify(leader.pid)
    assert identity is not None
    assert leader.stdout is not None
    helper = identify(int(leader.stdout.readline()))
    assert helper is not None
    leader.wait()
    yield identity, helper
    leader.stdout.close()
    if helper.is_running():
        subprocess.run(["/bin/kill", "-9", str(helper.pid)], check=True)


Group = tuple[ProcessIdentity, ProcessIdentity]


def test_what_a_dead_leader_left_is_ended_when_the_holder_is_gone(group: Group) -> None:
    leader, helper = group
    watchdog = Watchdog()
    watchdog.follow(leader)

    watchdog.close()

    assert not helper.is_running()


def test_a_group_that_was_forgotten_is_left_alone(group: Group) -> None:
    leader, helper = group
    watchdog = Watchdog()
    watchdog.follow(leader)
    watchdog.forget(leader)

    watchdog.close()

    assert helper.is_running()


def test_a_group_whose_leader_merely_has_a_followed_pid_is_left_alone() -> None:
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as bystander:
        identity = identify(bystander.pid)
        assert identity is not None
        watchdog = Watchdog()
        watchdog.follow(replace(identity, start_ticks=identity.start_ticks - 1))

        watchdog.close()

        assert bystander.poll() is None
        bystander.kill()
