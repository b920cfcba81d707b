"""The Redis names of one pool; the `{pool}` hash tag keeps them in one cluster slot."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from lorayard.contract.job import PRIORITIES, Priority

POOLS_KEY = "lorayard:pools"
"""Hash: pool id -> PoolInfo JSON, written by leaders."""

INTAKE_GROUP = "scheduler"
"""Consumer group of the intake and control streams."""


def reply_key(client_id: str) -> str:
    """Stream on which one client hears of all its jobs."""
    return f"lorayard:reply:{client_id}"


def tokens_key(job_id: UUID) -> str:
    """Stream of what one job's attempts have written so far: entries are `TokenEntry`."""
    return f"lorayard:tok:{job_id}"


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """The Redis names of one pool."""

    pool: str

    def _key(self, name: str) -> str:
        return f"lorayard:{{{self.pool}}}:{name}"

    def jobs(self, priority: Priority) -> str:
        """Intake stream of one priority class: entries are `JobEnvelope`."""
        return self._key(f"jobs:{priority}")

    @property
    def all_jobs(self) -> tuple[str, ...]:
        """The intake streams, most urgent first."""
        return tuple(self.jobs(priority) for priority in PRIORITIES)

    @property
    def intake_bytes(self) -> str:
        """Counter: bytes of the bodies in the intake streams; the guard adds, the leader DECRBYs."""
        return self._key("intake-bytes")

    @property
    def admission(self) -> str:
        """Hash: the room left, which `publish_figures.lua` writes for the leader and `submit.lua` reads."""
        return self._key("admission")

    @property
    def quotas(self) -> str:
        """Hash: tenant -> what it may still submit, which leader and guard write and read as `admission`."""
        return self._key("quotas")

    @property
    def quota_use(self) -> str:
        """Hash: tenant -> what the guard has let in of its quota."""
        return self._key("quota-use")

    @property
    def catalogue(self) -> str:
        """Hash: adapter name -> `CatalogueEntry` JSON, mirrored by the leader."""
        return self._key("catalogue")

    @property
    def next_catalogue(self) -> str:
        """Hash: what is to take the place of `catalogue`, while the leader writes it."""
        return self._key("catalogue:next")

    @property
    def control(self) -> str:
        """Stream of `ControlMessage` from clients to the leader."""
        return self._key("control")

    @property
    def worker_events(self) -> str:
        """Stream of `WorkerEvent` from workers to the leader (the completions stream)."""
        return self._key("completions")

    @property
    def term(self) -> str:
        """The current leader's term, compared by every leader write."""
        return self._key("term")

    @property
    def ledger(self) -> str:
        """The id of the ledger whose leaders those are, compared with the term."""
        return self._key("ledger")

    def commands(self, incarnation: str) -> str:
        """Stream of `Command` from the leader to one worker."""
        return self._key(f"cmd:{incarnation}")


def worker_queue(incarnation: str) -> str:
    """The Celery queue that one start of one worker consumes."""
    return f"lorayard.worker.{incarnation}"
