"""Becomes the program it is given, bound to the life of its parent; run as a script on the standard library.

A script between fork and exec does in a fresh, single-threaded interpreter what `preexec_fn` would do in a
copy of a threaded one, where it can deadlock.

The engine's `workers/engine/core/parent_death.py` cannot do this work: servers are started where no worker is
installed, as another user, and die by a signal that lets them end in order.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Take on a user, ask for a signal when the parent dies, wait for its word on stdin, and exec.

    Arguments: parent pid, death signal, uid, gid (-1: keep), program, its arguments.
    """
    parent_pid, death_signal, uid, gid = map(int, arguments[:4])
    program = arguments[4:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which clears the setting; exec keeps it.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    # A parent that died before prctl sends nothing: look now, and the window is closed.
    if os.getppid() != parent_pid:
        sys.exit(f"the parent process {parent_pid} died before {program[0]} was started")
    # The parent writes this process down first, and then one byte; the end of file says that it could not.
    if not os.read(0, 1):
        sys.exit(f"{program[0]} was not started: the parent process ended or gave up before")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execv(program[0], program)  # noqa: S606  the program and its arguments are the stack's own
    except OSError as error:
        sys.exit(f"cannot run {program[0]}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
