"""The names of all variables that Lorayard reads, so that whoever misspells one is told."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_NAMES: Final = """
    ADAPTER_PAUSE_S ADAPTER_STORE AUTO_TENANTS BATCH_INVARIANT CLIENT_TIMEOUT_S CPU_LEVEL
    DATABASE_DIRECT_URL DATABASE_PASSWORD DATABASE_PASSWORD_FILE DATABASE_POOL_SIZE DATABASE_URL
    DEVICE DEVICE_LOSSES DRAIN_GRACE_S DTYPE ENFORCE_EAGER ENGINE_START_S FLOWER_ADDRESS
    FLOWER_CONTROL FLOWER_HOSTS FLOWER_MAX_TASKS FLOWER_PASSWORD FLOWER_PASSWORD_FILE FLOWER_PORT
    FLOWER_STATE FLOWER_URL FLOWER_USER FLUSH_S GENERATION_CONFIG GPU_MEMORY_UTILIZATION
    GROUPING_WINDOW HOLD_REFUSED KERNELS KEY_DAYS LORA_LOAD_TIMEOUT_S LORA_POOL_BYTES MAX_BACKLOG
    MAX_BATCH_JOBS MAX_CPU_LORAS MAX_CPU_LORA_BYTES MAX_FLOWER_EVENTS_PER_S MAX_INTAKE_BYTES
    MAX_INTAKE_ENTRIES MAX_LORAS MAX_LORA_RANK MAX_MODEL_LEN MAX_NUM_SEQS MAX_QUEUED_LORA_LOADS
    MAX_SAVED_MODULE_BYTES MAX_UNCOMMITTED MAX_WORKERS MODEL MODEL_DIR NUM_KV_BLOCKS NUM_THREADS
    OVERCOMMIT_S PDL POLICY PREFIX_CACHE READY_FILE REDIS_PASSWORD REDIS_PASSWORD_FILE REDIS_URL
    RETENTION_DAYS SECRET_KEY SERVED_MODEL_NAME SHARE_GPUS SPILL_DIR START_TIMEOUT_S STARVATION_S
    STATEMENT_TIMEOUT_MS STATE_DIR SUSPECT_AFTER_S TERM_TTL_S WEBHOOK_ALLOW WEBHOOK_CONCURRENCY
    WEBHOOK_PER_HOST WEBHOOK_TIMEOUT_S WORKERS WORKER_LEASE_S WORKER_NAME
"""

KNOWN: Final = frozenset(f"LORAYARD_{name}" for name in _NAMES.split())
"""Whichever process reads them: they share what they are told, and most of it is not for each of them."""

# Kubernetes tells every container of the services in its namespace, some of which may be called lorayard-...
_OF_KUBERNETES = re.compile(
    r"LORAYARD_.*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_OF_TESTS = "LORAYARD_TEST"


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Say of each name that looks like one of ours and is none that nobody reads it, with the nearest one."""
    unknown = sorted({name.upper() for name in names if name.upper().startswith("LORAYARD_")} - KNOWN)
    return [
        f"{name} is set, but no process of this release reads it{_nearest(name)}"
        for name in unknown
        if not name.startswith(_OF_TESTS) and not _OF_KUBERNETES.fullmatch(name)
    ]


def _nearest(name: str) -> str:
    near = get_close_matches(name, sorted(KNOWN), n=1, cutoff=0.8)
    return f": did you mean {near[0]}?" if near else ": docs/configuration.md has those that are"
