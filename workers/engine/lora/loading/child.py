"""The engine's hold on its loader process: started as a program, gone with the engine whatever happens."""

from __future__ import annotations

import subprocess
import weakref

from workers.engine.core.child_process import NO_CARDS, ChildProcess
from workers.engine.lora.loading.channel import Channel, channel_pair

_PROGRAM = """
from workers.engine.lora.loading.process import main
main(int(sys.argv[3]))
"""


class LoaderChild:
    """A running loader process and the channel to it; `close`, garbage collection and exit all end it."""

    def __init__(self) -> None:
        ours, theirs = channel_pair()
        ours.setblocking(False)
        self.channel = Channel(ours)
        try:
            self._process = ChildProcess(
                _PROGRAM,
                theirs.fileno(),
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                environment={"OMP_NUM_THREADS": "1", **NO_CARDS},  # one thread is all it may use
                # A terminal's Ctrl-C is for the engine. A session of its own would make the niceness void.
                process_group=0,
                # Only the child may hold its end, or its death would not end the channel.
                on_spawned=theirs.close,
            )
        except BaseException:
            ours.close()
            raise
        self._end = weakref.finalize(self, ours.close)

    @property
    def pid(self) -> int:
        """Return the loader's process id."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """How the process ended; negative for a signal. Waits a moment for one that is about to."""
        return self._process.exitcode

    def close(self) -> None:
        """Kill the process, which has nothing to lose; closing twice does nothing."""
        self._end()
        self._process.kill()
