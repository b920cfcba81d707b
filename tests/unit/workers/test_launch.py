"""What a worker is told reaches its engine."""

from __future__ import annotations

from pathlib import Path

from workers.launch import _engine_config
from workers.settings import WorkerSettings


def test_the_engine_serves_the_model_under_the_name_that_the_worker_is_told() -> None:
    settings = WorkerSettings(
        model=Path("/model"), adapter_store=Path("/store"), served_model_name="someone/base"
    )

    config = _engine_config(settings)

    assert (config.model, config.served_model_name) == ("/model", "someone/base")
