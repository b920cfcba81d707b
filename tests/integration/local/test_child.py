"""A child is really started, watched and ended, with everything that it starts."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorayard.local.child import Child, ChildSpec
from lorayard.local.errors import ChildFailed
from lorayard.local.processes import ProcessIdentity, identify
from tests.polling import eventually

StartPython = Callable[[str], Child]

_SLEEP = "import time; time.sleep(600)"
_WITH_HELPER = f"""
import subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "{_SLEEP}"], start_new_session=OWN_SESSION)
print("helper", helper.pid, flush=True)
time.sleep(600)
"""
_DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[StartPython]:
    started: list[Child] = []

    def start(code: str) -> Child:
        argv = (sys.executable, "-c", code)
        started.append(Child(ChildSpec("probe", argv, tmp_path / "probe.log", dict(os.environ))))
        return started[-1]

    yield start
    for child in started:
        child.kill()


def said(child: Child, text: str) -> bool:
    return text in child.log_tail()


def helper_of(child: Child) -> ProcessIdentity:
    found = eventually(lambda: re.search(r"helper (\d+)", child.log_tail()), what="the helper's pid")
    helper = identify(int(found[1]))
    assert helper is not None
    return helper


def test_a_child_leads_a_session_and_a_process_group_of_its_own(start_python: StartPython) -> None:
    child = start_python(_SLEEP)

    assert child.alive
    assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid != os.getpgid(0)


def test_stop_ends_a_child_by_its_stop_signal(start_python: StartPython) -> None:
    child = start_python("print('here', flush=True)\n" + _SLEEP)
    eventually(lambda: said(child, "here"))

    assert child.stop(grace_s=10) == -signal.SIGTERM
    assert not child.alive


def test_stop_kills_a_child_that_ignores_its_stop_signal(start_python: StartPython) -> None:
    child = start_python(_DEAF)
    eventually(lambda: said(child, "deaf"))

    assert child.stop(grace_s=0.2) == -signal.SIGKILL


@pytest.mark.parametrize("own_session", [False, True])
def test_kill_takes_the_processes_that_the_child_started(
    start_python: StartPython, own_session: bool
) -> None:
    child = start_python(_WITH_HELPER.replace("OWN_SESSION", str(own_session)))
    helper = helper_of(child)

    child.kill()

    assert child.returncode == -signal.SIGKILL
    eventually(lambda: not helper.is_running(), what="the helper's end")


def test_what_a_dead_child_leaves_in_its_group_is_killed(start_python: StartPython) -> None:
    child = start_python(_WITH_HELPER.replace("OWN_SESSION", "False"))
    helper = helper_of(child)

    os.kill(child.pid, signal.SIGKILL)

    eventually(lambda: not child.alive, what="the child's end")
    eventually(lambda: not helper.is_running(), what="the helper's end")


def test_a_child_outlives_the_thread_that_started_it(start_python: StartPython) -> None:
    started: list[Child] = []

    def start() -> None:
        started.append(start_python("print('on', flush=True)\n" + _SLEEP))
        # Bound to its parent by now: a signal for the thread's end would reach it.
        eventually(lambda: said(started[0], "on"))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert started[0].wait(timeout_s=0.3) is None


def test_a_child_that_dies_before_it_is_ready_fails_with_its_last_words(start_python: StartPython) -> None:
    child = start_python("import sys; print('last words'); sys.exit(3)")

    with pytest.raises(ChildFailed, match=r"(?s)exited with status 3.*last words"):
        child.wait_ready(lambda: False, timeout_s=10)


def test_a_child_that_is_never_ready_fails_with_the_end_of_its_log(start_python: StartPython) -> None:
    child = start_python("print('still thinking', flush=True)\n" + _SLEEP)
    eventually(lambda: said(child, "still thinking"))

    with pytest.raises(ChildFailed, match=r"(?s)not ready within 0.1 s.*still thinking"):
        child.wait_ready(lambda: False, timeout_s=0.1)


def test_the_log_tail_shows_this_run_alone(start_python: StartPython) -> None:
    start_python("print('first')").finish(timeout_s=10)
    second = start_python("print('second')")
    second.finish(timeout_s=10)

    assert "second" in second.log_tail()
    assert "first" not in second.log_tail()
    assert "first" in second.spec.log_path.read_text()


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    child = Child(ChildSpec("ghost", ("/no/such/program",), tmp_path / "log", {}))

    with pytest.raises(ChildFailed, match="cannot run /no/such/program"):
        child.finish(timeout_s=10)
