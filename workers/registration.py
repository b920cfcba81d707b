"""This incarnation's rows in the ledger: entered once, renewed, and taken out of service at the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import Connection

from db.database import Database
from db.judge import explain
from db.records import Aborts, JobAttempt, PoolRow, WorkerDevice, WorkerEnd, WorkerLimits
from db.repositories.pools import PoolRepository
from db.repositories.terms import TermRepository
from db.repositories.workers import WorkerRepository
from lorayard.contract.messages import HeldJob
from lorayard.contract.pool import TOKENIZER_FILES, tokenizer_digest
from workers.engine.core.engine_info import EngineInfo
from workers.settings import WorkerSettings

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
        store: str,
        device: WorkerDevice,
        lease_s: float,
        about: PoolRow | None = None,
        began_at: float | None = None,
    ) -> None:
        """`store` is where the worker reads adapters, host and path.

        `about` is what the ledger keeps of the pool; None enters nothing of it. `began_at` is when the
        process began, in its monotonic seconds; None says nothing of how long it took.
        """
        self.lease_s = lease_s
        self._about = about
        self._began_at = began_at
        self._database = database
        self._incarnation = incarnation
        self._pool = pool
        self._hostname = hostname
        self._limits = limits
        self._host = host
        self._store = store
        self._device = device
        self._pause = threading.Event()
        self.ledger: UUID | None = None
        """The id of the ledger that it is entered in, once it is."""
        self._reported: tuple[frozenset[JobAttempt], int] | None = None
        """What the ledger has of the latest report: what runs, and how many jobs have succeeded."""

    def enter(self, *, unhealthy: str | None = None) -> str | None:
        """Register as ready, or as unhealthy for this reason; once more does nothing.

        Returns why the pool does not take this worker, None if it is registered.
        """
        refusal, self.ledger = self._database.run(
            lambda connection: (
                self._enter(connection, unhealthy),
                TermRepository(connection).ledger_id(),
            )
        )
        return refusal

    def _enter(self, connection: Connection, unhealthy: str | None) -> str | None:
        about = self._about
        if about is not None and (other := PoolRepository(connection).enter(about, self._incarnation)):
            return (
                f"the tokenizer in {about.model_path} ({', '.join(TOKENIZER_FILES)}: digest "
                f"{about.tokenizer}) is not that of the other workers of pool {about.pool} ({other}), and "
                "their jobs would get other prompts here: give all workers the same files, or stop "
                "the others first"
            )
        WorkerRepository(connection).register(
            self._incarnation,
            self._pool,
            self._hostname,
            self._limits,
            self.lease_s,
            device=self._device,
            unhealthy=unhealthy,
            host=self._host,
            store=self._store,
            start_s=None if self._began_at is None else time.monotonic() - self._began_at,
        )
        return None

    def renew(self) -> bool:
        """Prolong the lease; False when this incarnation is lost."""
        return self._with(lambda workers: workers.renew(self._incarnation, self.lease_s))

    def aborts(self, held: Sequence[HeldJob | JobAttempt]) -> Aborts:
        """Ask what to abort of the jobs in hand; of none, nobody need be asked."""
        if not held:
            return Aborts()
        return self._with(lambda workers: workers.aborts(self._incarnation, held))

    def report(self, held: Sequence[HeldJob], succeeded: int) -> None:
        """Say what is on the device and how many jobs have succeeded here, unless that was said last."""
        report = frozenset(JobAttempt(job.job_id, job.attempt) for job in held if job.running), succeeded
        if report != self._reported:
            self._with(lambda workers: workers.report(self._incarnation, held, succeeded))
            self._reported = report

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


def pool_of(settings: WorkerSettings, info: EngineInfo) -> PoolRow:
    """Say what the ledger keeps of the pool that a worker serves."""
    config = json.loads((settings.model / "config.json").read_bytes())
    return PoolRow(
        pool=settings.pool,
        model_name=info.served_model_name,
        served_model_name=settings.served_model_name,
        model_path=str(settings.model.absolute()),
        dtype=settings.dtype,
        quantization=info.quantization,
        generation_config=settings.generation_config,
        tokenizer=tokenizer_digest(settings.model),
        config={**config, "tie_word_embeddings": info.is_tied},
    )
