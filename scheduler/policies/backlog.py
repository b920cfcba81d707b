"""The backlog in memory: every waiting job once, in lanes that are kept in order as jobs come and go."""

from __future__ import annotations

from uuid import UUID

from scheduler.policies.lane import Lane, LaneKey, LaneName, LaneQueue
from scheduler.policies.queue_order import QueueOrder
from scheduler.policies.suspects import SuspectGroups
from scheduler.policies.types import AdapterDemand, PendingJob, PolicyConfig, Revision

NUM_CLASSES = 3


class Backlog:
    """Mutable: adding, taking and removing a job cost O(log n); nothing ever walks all jobs.

    Suspects stand by themselves, in their groups, because they run with no others.
    """

    def __init__(self, config: PolicyConfig | None = None) -> None:
        self.config = config or PolicyConfig()
        self._jobs: dict[UUID, PendingJob] = {}
        self._lanes: dict[LaneName, Lane] = {}
        self.suspects = SuspectGroups()
        self.order = QueueOrder()
        self.by_age = tuple(LaneQueue(lambda _, head: LaneKey(*head.order)) for _ in range(NUM_CLASSES))
        """One queue for each class, the lane with the oldest head first."""
        self.by_due = LaneQueue(self._due)
        """All lanes, the one first whose head is overdue the longest and that had no turn for it lately."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: UUID) -> bool:
        return job_id in self._jobs

    def jobs(self) -> list[PendingJob]:
        """List all that wait; for who looks into a failure, not for the loop."""
        return list(self._jobs.values())

    def get(self, job_id: UUID) -> PendingJob | None:
        """Find a waiting job."""
        return self._jobs.get(job_id)

    def add(self, job: PendingJob) -> bool:
        """Let a job wait; False if it waits already."""
        if job.job_id in self._jobs:
            return False
        self._jobs[job.job_id] = job
        self.order.add(job)
        if job.group is not None:
            self.suspects.add(job)
            return True
        name = LaneName(job.priority, job.revision)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name)
        lane.push(job)
        if lane.head() is job:
            self._requeue(lane)
        return True

    def take(self, job_id: UUID) -> PendingJob | None:
        """Remove a job, because it is planned or has ended; None if it does not wait."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return None
        self.order.remove(job)
        if job.group is not None:
            self.suspects.remove(job)
            return job
        lane = self._lanes[LaneName(job.priority, job.revision)]
        was_head = lane.head() is job
        lane.remove(job)
        if not len(lane):
            del self._lanes[lane.name]
        elif was_head:
            self._requeue(lane)
        return job

    def lane(self, priority: int, revision: Revision) -> Lane | None:
        """Find the lane of a class and revision that holds jobs."""
        return self._lanes.get(LaneName(priority, revision))

    def is_overdue(self, job: PendingJob, now: float) -> bool:
        """Whether a job has waited longer than its class may."""
        return job.waiting_since + self.config.starvation_s[job.priority] <= now

    def end_turn(self, lane: Lane, now: float) -> None:
        """Note that a lane has had a turn for its overdue jobs, so that others come before its next one."""
        lane.turn_at = now + self.config.starvation_s[lane.name.priority] / self.config.turns_per_bound
        self.by_due.push(lane)

    def demand(self, limit: int) -> list[AdapterDemand]:
        """List the adapters that jobs wait for, the one whose turn comes first ahead; at most so many."""
        heads = [
            (lane.name.priority, *head.order, lane) for lane in self._lanes.values() if (head := lane.head())
        ]
        found: dict[str, AdapterDemand] = {}
        for *_, lane in sorted(heads, key=lambda entry: entry[:3]):
            head = lane.head()
            if head is None or head.revision is None:
                continue
            before = found.get(head.revision)
            if before is None and len(found) == limit:
                continue
            num_jobs = len(lane) + (before.num_jobs if before else 0)
            found[head.revision] = AdapterDemand(head.revision, num_jobs, head.rank, head.adapter_bytes)
        return list(found.values())

    def _due(self, lane: Lane, head: PendingJob) -> LaneKey:
        due_at = head.waiting_since + self.config.starvation_s[head.priority]
        return LaneKey(max(due_at, lane.turn_at), head.admit_seq)

    def _requeue(self, lane: Lane) -> None:
        self.by_age[lane.name.priority].push(lane)
        self.by_due.push(lane)
