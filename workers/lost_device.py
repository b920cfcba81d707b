"""What becomes of a worker whose device failed: another engine after a pause, or a worker that is unhealthy.

The pause is for a driver that resets the card. A device that fails again and again is somebody's to look at:
jobs that are sent there only lose time.
"""

from __future__ import annotations

import json
import uuid
from typing import Final

import structlog

from db.judge import explain
from db.records import WorkerDevice, WorkerLimits
from lorayard.process.logs import configure_logs
from lorayard.process.restarts import RestartBudget
from lorayard.process.stop_request import StopRequest
from workers.lease import RENEWALS_PER_LEASE
from workers.registration import Registration
from workers.settings import WorkerSettings
from workers.successor import start_again
from workers.wiring import make_registration

MAX_RESTARTS: Final = 2
WINDOW_S: Final = 600.0
"""The third loss of a device within ten minutes is one too many."""

FIRST_PAUSE_S = 5.0
"""Doubled for each loss within the window."""

NO_ROOM: Final = WorkerLimits(
    max_num_seqs=0, num_kv_blocks=0, block_size=0, max_model_len=0, max_loras=0, max_lora_rank=0
)
"""What a worker without an engine can hold."""

logger = structlog.get_logger(__name__)


class LostDevice:
    """The end of one incarnation, all of whose jobs were given back already."""

    def __init__(self, settings: WorkerSettings, device: WorkerDevice, stop: StopRequest) -> None:
        self._settings = settings
        self._device = device
        self._stop = stop

    def go_on(self, reason: str) -> int:
        """Begin a new incarnation, or stay as an unhealthy one until told to stop; returns the status."""
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)
        losses = RestartBudget(
            max_restarts=MAX_RESTARTS, window_s=WINDOW_S, taken_at=self._settings.device_losses
        )
        if not losses.take():
            self._stay_unhealthy(
                f"its device failed {MAX_RESTARTS + 1} times within {WINDOW_S / 60:g} minutes: look at the "
                f"card (nvidia-smi, the kernel's log), then start the worker anew; the last time: {reason}"
            )
            return 0
        taken_at = losses.taken_at
        pause_s = FIRST_PAUSE_S * 2.0 ** (len(taken_at) - 1)
        logger.error("worker.device_lost", reason=reason, losses=len(taken_at), again_in_s=pause_s)
        if not self._stop.wait(pause_s):
            start_again(self._stop, {"LORAYARD_DEVICE_LOSSES": json.dumps(taken_at)})
        return 0

    def _stay_unhealthy(self, reason: str) -> None:
        """Keep a lease that gets no jobs, through outages of the ledger, until told to stop."""
        registration, is_entered, is_failing = self._new_registration(), False, False
        logger.critical("worker.unhealthy", reason=reason)
        while not self._stop.is_set():
            try:
                if not is_entered:
                    registration.enter(unhealthy=reason)
                    is_entered = True
                elif not registration.renew():  # an outage took longer than the lease
                    registration, is_entered = self._new_registration(), False
                    continue
                is_failing = False
            except Exception as error:  # noqa: BLE001 - whatever the ledger has, the next beat may go through
                if not is_failing:
                    logger.warning("lease.beat_failed", part="unhealthy", error=explain(error))
                is_failing = True
            self._stop.wait(self._settings.worker_lease_s / RENEWALS_PER_LEASE)
        if is_entered:
            registration.leave("drained")

    def _new_registration(self) -> Registration:
        """Prepare another incarnation, under whose name this process logs from now on."""
        settings, incarnation = self._settings, uuid.uuid4().hex
        configure_logs(process="worker", worker=settings.worker_name, incarnation=incarnation[:8])
        return make_registration(settings, incarnation, NO_ROOM, self._device)
