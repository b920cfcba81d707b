"""One job as this process sees it: what was heard of it, and what that means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from lorayard.contract.job import Priority
from lorayard.contract.messages import RESULT_EXPIRED, JobReply
from lorayard.contract.result import JobError, JobResult
from lorayard.contract.states import JobState

FIRST_SILENCE_S = 0.5
MAX_SILENCE_S = 2.0
UNKNOWN_GRACE_S = 3.0
"""A job of another process may still be on its way through the intake: ask this long before giving up."""
MAX_OMITTED = 3
"""Replies without the output, after which it is taken to be beyond what a lookup carries."""
REPLIES_WITHOUT_CONFLICT = 2
"""Replies after a submission has left the intake that speak of no conflict: there is none, or it was lost."""


class IntakePlace(NamedTuple):
    """The stream entry that a job became."""

    pool: str
    priority: Priority
    entry_id: bytes


@dataclass(slots=True, weakref_slot=True, eq=False)
class TrackedJob:
    """The mutable picture of one job; changed only under its tracker's lock."""

    job_id: UUID
    state: JobState | None = None
    result: JobResult | None = None
    conflicts: dict[UUID, JobError] = field(default_factory=dict)
    # Set when the ledger has no more than the key of it.
    expired: JobError | None = None
    lost: bool = False
    replies: int = 0
    omitted: int = 0
    # Where it stood when that was told last; None is not known.
    queue_position: int | None = None
    eta_s: float | None = None
    # Where it went, when this process submitted it.
    place: IntakePlace | None = None
    # Submissions under a key of which the ledger has not said yet whether they are this job. Under a key the
    # first submission may be another client's, which then hears of the end, and not this one.
    has_key: bool = False
    unconfirmed: set[UUID] = field(default_factory=set)
    # Those of which it seems to have said so, but nobody here has heard it.
    unheard: set[UUID] = field(default_factory=set)
    # Pace of the lookups. `repair`: ask although other news flows.
    repair: bool = False
    next_lookup_at: float = 0.0
    silence_s: float = FIRST_SILENCE_S
    # Requests not answered yet; how many were sent; how many were answered with "no such job".
    pending: set[UUID] = field(default_factory=set)
    asked: int = 0
    unknown_answers: int = 0
    unknown_since: float | None = None
    # Set when the entry was seen to have left the intake: `asked` at that time, and replies since.
    asked_when_gone: int | None = None
    replies_since_gone: int = 0
    subscribers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_submitted_here(self) -> bool:
        """True when this process appended the job, so that it exists although no ledger knows it yet."""
        return self.place is not None

    def is_settled(self, submission_id: UUID | None) -> bool:
        """Tell whether nothing more will be heard that concerns a handle of this submission."""
        if self.lost or self.expired is not None or submission_id in self.conflicts:
            return True
        return self.result is not None and submission_id not in self.unconfirmed

    def submitted(self, place: IntakePlace) -> None:
        """Note where the job went, and forget that it was thought lost."""
        self.place = place
        self.lost = False
        self._is_accounted_for()

    def begin_waiting(self) -> None:
        """Give a job of another process that nobody knew a new chance to appear."""
        if not self.is_submitted_here:
            self.lost, self.unknown_since = False, None

    def take(self, reply: JobReply, now: float) -> bool:
        """Fold a reply in; True when only a look into the intake can tell what it means."""
        self.replies += 1
        self.repair = False
        self.replies_since_gone += 1
        if reply.request_id is not None:
            self.pending.discard(reply.request_id)
        if reply.conflict is not None and reply.conflict.code == RESULT_EXPIRED:
            self.expired = reply.conflict
            self.unconfirmed.clear()
            return False
        if reply.submission_id is not None:
            self.unconfirmed.discard(reply.submission_id)
            self.unheard.discard(reply.submission_id)
            if reply.conflict is not None:
                self.conflicts[reply.submission_id] = reply.conflict
                return False
        return self._take_unknown(now) if reply.state is None else self._take_state(reply.state, reply)

    def lookup_is_due(self, now: float, silent: bool) -> bool:
        """Tell whether to ask: not of a job whose reply can be expected while others keep coming."""
        is_over = self.lost or self.expired is not None
        if is_over or now < self.next_lookup_at or (self.result is not None and not self.unconfirmed):
            return False
        return silent or self.repair or self.has_key or not self.is_submitted_here

    def _take_state(self, state: JobState, reply: JobReply) -> bool:
        self.lost = False
        if self.result is None:
            self.state = state
            self._take_result(state, reply)
        if reply.queue_position is not None or reply.eta_s is not None:
            self.queue_position, self.eta_s = reply.queue_position, reply.eta_s
        if not self.unconfirmed:
            self._is_accounted_for()
        elif self.asked_when_gone is not None and self.replies_since_gone >= REPLIES_WITHOUT_CONFLICT:
            self.unheard |= self.unconfirmed
            self.unconfirmed.clear()
        return bool(self.unconfirmed)

    def _take_result(self, state: JobState, reply: JobReply) -> None:
        if reply.result is None or not state.is_terminal:
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

    def gone_from_intake(self) -> None:
        """Note that the entry has left the intake, so that the ledger's answers from now on decide."""
        if self.asked_when_gone is None:
            self.asked_when_gone, self.replies_since_gone = self.asked, 0

    def _is_accounted_for(self) -> None:
        self.unknown_since = self.asked_when_gone = None
