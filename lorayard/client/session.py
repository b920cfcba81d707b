"""What a client and its handles share: the link, the tracker and the listener of one process."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import Literal
from uuid import UUID

from redis import exceptions as redis_errors

from lorayard.client.control import ControlClient
from lorayard.client.directory import PoolDirectory
from lorayard.client.listener import ReplyListener
from lorayard.client.tracked_job import TrackedJob
from lorayard.client.tracker import JobTracker
from lorayard.contract.errors import InvalidJob, LorayardError
from lorayard.contract.ids import uuid7
from lorayard.contract.keys import reply_key
from lorayard.contract.wording import shortened
from lorayard.transport.redis_link import RedisLink


class Session:
    """One client's open business; thread-safe, bound to the process that made it."""

    def __init__(self, redis_url: str, model: str | None, timeout_s: float) -> None:
        self.client_id = uuid7().hex
        self.timeout_s = timeout_s
        self.link = RedisLink(redis_url, timeout_s)
        self.directory = PoolDirectory(self.link.commands, model)
        self.tracker = JobTracker()
        self._control = ControlClient(self.client_id, self.directory, self.tracker)
        self.listener = ReplyListener(self.client_id, self.link, self.tracker, self._control)
        self._process = os.getpid()
        # Whoever forgets to close leaves no thread behind: it ends once client and handles are gone.
        weakref.finalize(self, _dismiss, self.listener, self._process)
        self._is_closed = False

    def check_usable(self) -> None:
        """Refuse use after close and in a forked child, whose threads and sockets are not its own."""
        if self._is_closed:
            raise LorayardError("this client is closed: make a new one")
        if os.getpid() != self._process:
            raise LorayardError(
                f"this client was made in process {self._process} and is used in its fork {os.getpid()}: "
                "make one Client in each process, after the fork"
            )

    def listen(self) -> None:
        """Have replies read from now on."""
        self.check_usable()
        self.listener.start()

    def track(self, job_id: UUID | str) -> TrackedJob:
        """Return what is known of a job, by the id that a caller gives; raises InvalidJob if it is none."""
        self.check_usable()
        try:
            known = job_id if isinstance(job_id, UUID) else UUID(job_id)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidJob(
                f"{shortened(job_id)} is not a valid job id: give the UUID that submit returned"
            ) from error
        return self.tracker.track(known)

    def adapters(self) -> list[str]:
        """Name the adapters that jobs may ask for; raises Unavailable, UnknownPool."""
        self.check_usable()
        with self.link.reaching(sends=False):
            return self.directory.adapters()

    def ask(
        self, kind: Literal["cancel", "lookup"], tracked: TrackedJob, *, wants_place: bool = False
    ) -> UUID:
        """Send one question now and return its id; raises Unavailable, UnknownPool."""
        self.listen()
        with self.link.reaching(sends=True):
            return self._control.ask(self.link.commands, kind, [tracked], wants_place=wants_place)[0]

    def raise_if_deaf(self) -> None:
        """Raise if no reply can come any more."""
        self.check_usable()
        if self.tracker.failure is not None:
            raise LorayardError(
                f"the reply listener failed: {self.tracker.failure!r}"
            ) from self.tracker.failure

    def excuse(self) -> str:
        """Say what a caller who waited in vain should look at."""
        if self.listener.unreachable is not None:
            return f"Redis at {self.link.display_url} is out of reach ({self.listener.unreachable})"
        return "it goes on, wait again; check that a scheduler and a worker run"

    def close(self) -> None:
        """Stop listening and give back what Redis and the process held; a second call does nothing."""
        if self._is_closed or os.getpid() != self._process:
            return
        self._is_closed = True
        self.listener.stop()
        self.tracker.wake_all()
        if self.listener.is_started and self.listener.unreachable is None:
            with suppress(redis_errors.RedisError):
                self.link.commands.unlink(reply_key(self.client_id))
        self.link.close()


def _dismiss(listener: ReplyListener, process: int) -> None:
    """Dismiss the listener of this process: in a fork its locks may be held by threads that are not there."""
    if os.getpid() == process:
        listener.dismiss()
