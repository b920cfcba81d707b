"""Starts a worker process, and starts it again when an incarnation is over."""

from __future__ import annotations

import logging
import os
import time
import uuid
from contextlib import suppress
from dataclasses import asdict

import structlog

from db.records import WorkerDevice
from db.server_check import require_usable_ledger
from lorayard.contract.pool import model_len
from lorayard.process.environment import BAD_ENVIRONMENT, readable_settings
from lorayard.process.logs import configure_logs
from lorayard.process.server_check import require_usable_redis
from lorayard.process.stop_request import StopRequest
from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import ConfigError, DeviceLost, EngineStartError
from workers.engine.serving.process import EngineProcess
from workers.foreign_ledger import require_own_pool
from workers.lost_device import LostDevice
from workers.registration import device_of
from workers.service import WorkerEnd, WorkerService
from workers.settings import WorkerSettings
from workers.successor import start_again
from workers.wiring import Wiring

GAVE_UP = 1
"""Exit status of a process that could not go on: whoever supervises it starts another."""

logger = structlog.get_logger(__name__)


def main() -> int:
    """Run one worker until it is told to leave; returns the exit status."""
    began_at = time.monotonic()
    with readable_settings("workers"):
        settings = WorkerSettings()
    incarnation = uuid.uuid4().hex
    log_fields = {"worker": settings.worker_name, "incarnation": incarnation[:8]}
    configure_logs(process="worker", **log_fields)
    # It warns at each revoke that there is no result backend, which is so on purpose.
    logging.getLogger("celery.worker.control").setLevel(logging.ERROR)
    stop = StopRequest()
    stop.listen()
    require_usable_redis("workers", settings.redis_url)
    require_usable_ledger("workers", settings.database_url)
    require_own_pool(settings.redis_url, settings.database_url, settings.pool)
    _reap_leftovers()
    try:
        engine = EngineProcess(_engine_config(settings), log_fields={"process": "engine", **log_fields})
        info = engine.start(settings.engine_start_s, is_unwanted=stop.is_set)
    except (ConfigError, EngineStartError) as error:
        return 0 if stop.is_set() else _not_started(error, settings, stop)
    logger.info("engine.started", pid=engine.pid, **_told_of(info))
    service = WorkerService(
        stop,
        ready_file=settings.ready_file,
        drain_grace_s=settings.drain_grace_s,
        flush_s=settings.flush_s,
        build=lambda service: Wiring(settings, incarnation, info, service, began_at).parts(engine),
    )
    ending = service.run()
    if ending in (WorkerEnd.BROKEN, WorkerEnd.REFUSED):
        return GAVE_UP
    if ending is WorkerEnd.DEVICE_LOST:
        return LostDevice(settings, device_of(info), stop).go_on(service.reason)
    if ending is not WorkerEnd.DRAINED:
        start_again(stop)
    return 0


def _not_started(error: ConfigError | EngineStartError, settings: WorkerSettings, stop: StopRequest) -> int:
    """Say why there is no engine; returns the exit status, which for a wrong configuration is its own."""
    logger.critical("engine.not_started", error=str(error))
    reason = error.reason if isinstance(error, EngineStartError) else error.code
    if reason == DeviceLost.code:
        return LostDevice(settings, WorkerDevice(settings.device), stop).go_on(str(error))
    return BAD_ENVIRONMENT if reason == ConfigError.code else GAVE_UP


def _told_of(info: EngineInfo) -> dict[str, object]:
    """Return what the log says of an engine: of the model's defaults those that jobs get."""
    defaults = {
        name: value for name, value in asdict(info.sampling_defaults).items() if name != "temperature"
    }
    return {
        "model": info.model,
        "kv_blocks": info.num_kv_blocks,
        "sampling_defaults": defaults,
        **asdict(device_of(info)),
    }


def _reap_leftovers() -> None:
    """Bury what the incarnation before this one left to its process: an engine that it could not wait for."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        model=str(settings.model),
        served_model_name=settings.served_model_name,
        device=settings.device,
        dtype=settings.dtype,
        kernels=settings.kernels,
        generation_config=settings.generation_config,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.enforce_eager,
        batch_invariant=settings.batch_invariant,
        lora_pool_bytes=settings.lora_pool_bytes,
        max_num_seqs=settings.max_num_seqs,
        max_model_len=model_len(settings.model, settings.max_model_len),
        num_kv_blocks=settings.num_kv_blocks,
        enable_prefix_caching=settings.prefix_cache != "off",
        enable_lora=True,
        max_loras=settings.max_loras,
        max_lora_rank=settings.max_lora_rank,
        max_cpu_loras=settings.max_cpu_loras,
        max_cpu_lora_bytes=settings.max_cpu_lora_bytes,
        max_saved_module_bytes=settings.max_saved_module_bytes,
        max_queued_lora_loads=settings.max_queued_lora_loads,
        lora_load_timeout_s=settings.lora_load_timeout_s,
        num_threads=settings.num_threads,
    )
