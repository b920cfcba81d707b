"""What an engine's process says last, when its device has failed or has too little memory."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NoReturn

from workers.engine.core.config import EngineConfig
from workers.engine.core.device_failures import is_device_failure, is_out_of_memory
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import ConfigError, DeviceLost, EngineError
from workers.engine.serving.messages import DeviceFailed, StartFailed

EXIT_STATUS = 3
_MAX_WORDS = 1000


def start_failure(error: Exception, config: EngineConfig) -> StartFailed:
    """Word why an engine could not be built: a card that is too small is a matter of its configuration."""
    if isinstance(error, EngineError):
        return StartFailed(error.code, str(error))
    if is_out_of_memory(error):
        return StartFailed(
            ConfigError.code,
            f"{_worded(error)}; the engine was to use {_limits(config)}: lower these, give it a card with "
            "more memory, or end what else uses this one",
        )
    code = DeviceLost.code if is_device_failure(error) else "engine_start"
    return StartFailed(code, _worded(error))


def leave_lost_device(
    error: Exception, connection: Connection, config: EngineConfig, info: EngineInfo
) -> NoReturn:
    """Tell the parent that the device failed, and end at once.

    Nothing is closed in order: whatever touches the device again fails, or waits for it forever.
    """
    traceback.print_exception(error)
    message = _worded(error)
    if is_out_of_memory(error):
        message += f"; of {info.device_memory_bytes} bytes the engine had {_limits(config)}, {_held(info)}"
    with suppress(OSError):
        connection.send(DeviceFailed(message))
    os._exit(EXIT_STATUS)


def _limits(config: EngineConfig) -> str:
    pool = "its default" if config.lora_pool_bytes is None else str(config.lora_pool_bytes)
    return (
        f"gpu_memory_utilization {config.gpu_memory_utilization:g}, lora_pool_bytes {pool}, "
        f"max_num_batched_tokens {config.max_num_batched_tokens}, max_num_seqs {config.max_num_seqs}"
    )


def _held(info: EngineInfo) -> str:
    return (
        f"{info.linear_bytes} bytes of linear modules and {info.num_kv_blocks} KV blocks "
        f"of {info.block_size} tokens"
    )


def _worded(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_WORDS]
