"""One job as this process sees it: what was heard of it, and what that means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from lorayard.contract.job import Priority
from lorayard.contract.messages import JobReply
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

FIRST_SILENCE_S = 0.5
MAX_SILENCE_S = 2.0
UNKNOWN_GRACE_S = 3.0
"""A job of another process may still be on its way through the intake: ask this long before giving up."""
MAX_OMITTED = 3
"""Replies without the output, after which it is taken to be beyond what a lookup carries."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class JobWatch:
    """The mutable picture of one job; changed only under its board's lock."""

    job_id: UUID
    state: JobState | None = None
    result: JobResult | None = None
    conflicts: dict[UUID, JobError] = field(default_factory=dict)
    lost: bool = False
    replies: int = 0
    omitted: int = 0
    # Where it went, when this process submitted it. `announced`: its replies surely come to this client.
    pool: str | None = None
    priority: Priority | None = None
    entry_id: bytes | None = None
    announced: bool = False
    # Pace of the lookups, and what they said. `repair`: ask although other news flows.
    repair: bool = False
    next_lookup_at: float = 0.0
    silence_s: float = FIRST_SILENCE_S
    asked: int = 0
    unknown_answers: int = 0
    unknown_since: float | None = None
    asked_when_gone: int | None = None
    subscribers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_submitted_here(self) -> bool:
        """True when this process appended the job, so that it exists although no ledger knows it yet."""
        return self.entry_id is not None

    def is_settled(self, submission_id: UUID | None) -> bool:
        """Tell whether nothing more will be heard that concerns a handle of this submission."""
        return self.result is not None or self.lost or submission_id in self.conflicts

    def submitted(self, pool: str, priority: Priority, entry_id: bytes, announced: bool) -> None:
        """Note where the job went, and forget what was said of it before it existed."""
        self.pool, self.priority, self.entry_id, self.announced = pool, priority, entry_id, announced
        self.unknown_since = self.asked_when_gone = None
        self.lost = False

    def begin_waiting(self) -> None:
        """Give a job of another process that nobody knew a new chance to appear."""
        if not self.is_submitted_here:
            self.lost, self.unknown_since = False, None

    def take(self, reply: JobReply, now: float) -> bool:
        """Fold a reply in; True when the ledger does not know a job that was submitted here."""
        self.replies += 1
        self.repair = False
        if reply.conflict is not None and reply.submission_id is not None:
            self.conflicts[reply.submission_id] = reply.conflict
            return False
        if reply.state is None:
            return self._take_unknown(now)
        self.unknown_since = self.asked_when_gone = None
        self.lost = False
        if self.result is None:
            self.state = reply.state
            self._take_result(reply)
        return False

    def lookup_is_due(self, now: float, silent: bool) -> bool:
        """Tell whether to ask: not of a job whose reply can be expected while others keep coming."""
        if self.result is not None or self.lost or now < self.next_lookup_at:
            return False
        return silent or self.repair or not self.announced

    def _take_result(self, reply: JobReply) -> None:
        if reply.result is None or not reply.state or not reply.state.is_terminal:
            return
        self.omitted += reply.output_omitted
        if reply.output_omitted and self.omitted < MAX_OMITTED:
            self.repair, self.next_lookup_at = True, 0.0
        else:
            self.result = reply.result

    def _take_unknown(self, now: float) -> bool:
        self.unknown_answers += 1
        if self.state is not None:
            return False
        if not self.is_submitted_here:
            self.unknown_since = now if self.unknown_since is None else self.unknown_since
            self.lost = now - self.unknown_since >= UNKNOWN_GRACE_S
            return False
        # Answers come in the order of the questions: one more than were asked when the entry was seen to be
        # gone is an answer given after that.
        self.lost = self.asked_when_gone is not None and self.unknown_answers > self.asked_when_gone
        return not self.lost
