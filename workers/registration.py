"""This incarnation's rows in the ledger: entered once, renewed, and taken out of service at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import structlog

from db.database import Database
from db.judge import explain
from db.records import Aborts, JobAttempt, WorkerDevice, WorkerEnd, WorkerLimits
from db.repositories.workers import WorkerRepository
from lorayard.contract.messages import HeldJob
from workers.engine.core.engine_info import EngineInfo

LAST_WORD_S = 5.0
RETRY_S = 0.2

logger = structlog.get_logger(__name__)
T = TypeVar("T")


class Registration:
    """Every call is one short transaction; all but the last words raise what Postgres and its driver do."""

    def __init__(
        self,
        database: Database,
        incarnation: str,
        pool: str,
        hostname: str,
        limits: WorkerLimits,
        *,
        host: str,
        device: WorkerDevice,
        lease_s: float,
    ) -> None:
        self.lease_s = lease_s
        self._database = database
        self._incarnation = incarnation
        self._pool = pool
        self._hostname = hostname
        self._limits = limits
        self._host = host
        self._device = device
        self._pause = threading.Event()

    def enter(self, *, unhealthy: str | None = None) -> None:
        """Register as ready, or as unhealthy for this reason; once more does nothing."""
        self._with(
            lambda workers: workers.register(
                self._incarnation,
                self._pool,
                self._hostname,
                self._limits,
                self.lease_s,
                device=self._device,
                unhealthy=unhealthy,
                host=self._host,
            )
        )

    def renew(self) -> bool:
        """Prolong the lease; False when this incarnation is lost."""
        return self._with(lambda workers: workers.renew(self._incarnation, self.lease_s))

    def aborts(self, held: Sequence[HeldJob]) -> Aborts:
        """Ask what to abort of the jobs in hand."""
        return self._with(lambda workers: workers.aborts(self._incarnation, held))

    def report(self, held: Sequence[HeldJob], succeeded: int) -> None:
        """Say what is on the device, and how many jobs have succeeded here."""
        self._with(lambda workers: workers.report(self._incarnation, held, succeeded))

    def say_draining(self) -> bool:
        """Have the leader send nothing more; False when the ledger could not be told in time."""
        return self._last_word(lambda workers: workers.set_state(self._incarnation, "draining"))

    def leave(
        self,
        end: WorkerEnd,
        held: Sequence[HeldJob] = (),
        *,
        succeeded: int = 0,
        in_step: Collection[JobAttempt] = (),
    ) -> bool:
        """Leave, saying why, so that the leader need not wait for the lease.

        `held` is what is in hand still, and `in_step` what the engine was computing if it died.
        """

        def leave(workers: WorkerRepository) -> None:
            workers.report(self._incarnation, held, succeeded)
            workers.say_end(self._incarnation, end, in_step)
            workers.set_state(self._incarnation, "gone")

        return self._last_word(leave)

    def _last_word(self, say: Callable[[WorkerRepository], object]) -> bool:
        deadline = time.monotonic() + LAST_WORD_S
        while time.monotonic() < deadline:
            try:
                self._with(say)
            except Exception as error:  # noqa: BLE001 - the lease ends by itself if it cannot be told
                logger.warning("worker.ledger_not_told", error=explain(error))
                self._pause.wait(RETRY_S)
            else:
                return True
        return False

    def _with(self, work: Callable[[WorkerRepository], T]) -> T:
        return self._database.run(lambda connection: work(WorkerRepository(connection)))


def limits_of(info: EngineInfo) -> WorkerLimits:
    """Tell the leader what the engine can hold."""
    return WorkerLimits(
        max_num_seqs=info.max_num_seqs,
        num_kv_blocks=info.num_kv_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        max_loras=info.max_loras,
        max_lora_rank=info.max_lora_rank,
    )


def device_of(info: EngineInfo) -> WorkerDevice:
    """Say what the engine computes on."""
    return WorkerDevice(
        device=info.device,
        device_name=info.device_name,
        device_memory_bytes=info.device_memory_bytes,
        driver_version=info.driver_version,
        torch_version=info.torch_version,
    )
