"""What a stack is made of; everything optional has the value that suits one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorayard.local.cards import check_workers
from lorayard.local.environment import inherited_environment

PartKind = Literal["redis", "postgres", "migrate", "scheduler", "workers", "relay", "flower"]

SERVERS: frozenset[PartKind] = frozenset({"redis", "postgres"})
EVERYTHING: frozenset[PartKind] = SERVERS | {"migrate", "scheduler", "workers", "relay", "flower"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """One stack: which parts run, where they keep their state, how Lorayard's own are configured."""

    state_dir: Path
    parts: frozenset[PartKind] = EVERYTHING
    # The environment that every process starts from; ours is added to it.
    inherited_env: Mapping[str, str] = field(default_factory=inherited_environment, repr=False)

    redis_url: str | None = field(default=None, repr=False)  # given: used, and no Redis is started
    database_url: str | None = field(default=None, repr=False)  # given: used, and no Postgres is started
    durable: bool = True  # False: a crash of the machine may lose data, a crash of a process may not
    num_workers: int = 2
    cards: tuple[str, ...] = ()  # what workers are given, as CUDA_VISIBLE_DEVICES has it; none: the CPU
    share_gpus: bool = False  # more workers than cards take turns
    gpu_memory_utilization: float | None = None  # of its card, for each worker; None: the worker's own
    flower_port: int | None = None  # None: a free one
    flower_control: bool = False  # Flower may cancel jobs
    flower_max_tasks: int = 10_000  # that Flower keeps in memory
    start_timeout_s: float = 120.0
    drain_grace_s: float = 30.0

    model: Path | None = None
    served_model_name: str | None = None  # None: what the checkpoint calls itself
    adapter_store: Path | None = None  # None: in the state directory
    secret_key: str | None = field(default=None, repr=False)  # None: made once, kept in the state directory
    webhook_allow: str = "127.0.0.0/8"
    auto_tenants: bool = True
    dtype: str | None = None
    generation_config: str | None = None
    max_num_seqs: int | None = None
    max_loras: int | None = None
    max_lora_rank: int | None = None
    max_cpu_loras: int | None = None
    max_model_len: int | None = None
    extra_env: Mapping[str, str] = field(default_factory=dict)  # for Lorayard's own processes, last word

    def card_of(self, worker: int) -> str | None:
        """Name the card of the n-th worker, from 1; None on the CPU. Raises CardsUnavailable."""
        if not self.cards:
            return None
        check_workers(self.cards, worker, shared=self.share_gpus)
        return self.cards[(worker - 1) % len(self.cards)]
