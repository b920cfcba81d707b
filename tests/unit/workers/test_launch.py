"""What a worker is told reaches its engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorayard.process.environment import BAD_ENVIRONMENT
from scheduler.checkpoint import describe_pool
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.sampling_defaults import SamplingDefaults
from workers.launch import _engine_config, _told_of
from workers.settings import WorkerSettings

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"


def test_the_engine_serves_the_model_under_the_name_that_the_worker_is_told() -> None:
    settings = WorkerSettings(
        model=Path("/model"),
        adapter_store=Path("/store"),
        served_model_name="someone/base",
        max_model_len=64,
    )

    config = _engine_config(settings)

    assert (config.model, config.served_model_name) == ("/model", "someone/base")


@pytest.mark.parametrize("chosen", [None, 40])
@pytest.mark.parametrize("positions", [None, 100, 131_072])
def test_workers_take_jobs_as_long_as_the_scheduler_admits(
    chosen: int | None, positions: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    settings = WorkerSettings(model=tmp_path, adapter_store=tmp_path, max_model_len=chosen)

    admitted = describe_pool(tmp_path, settings.dtype, chosen).max_model_len

    assert _engine_config(settings).max_model_len == admitted == min(chosen or 2048, positions or 2048)


def test_the_log_tells_of_the_models_defaults_those_that_jobs_get() -> None:
    info = EngineInfo(
        model="/model",
        served_model_name="base",
        dtype="float32",
        vocab_size=9,
        max_model_len=64,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        block_size=16,
        num_kv_blocks=4,
        max_loras=1,
        max_lora_rank=8,
        quantization=None,
        quant_storage="keep",
        linear_bytes=0,
        cpu_kernels="torch",
        sampling_defaults=SamplingDefaults(temperature=0.7, top_p=0.8),
    )

    assert _told_of(info)["sampling_defaults"] == {
        "top_p": 0.8,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"LORAYARD_DTYPE": "float16"}, "dtype is 'float16', which the CPU's kernels do not have"),
        ({"LORAYARD_MAX_MODEL_LEN": "99999"}, "engine_config: max_model_len is 99999"),
        ({"LORAYARD_DEVICE": "cuda:9"}, "engine_config: device is 'cuda:9', but torch"),
    ],
)
def test_a_wrong_configuration_ends_the_worker_at_once_with_a_status_of_its_own(
    variables: dict[str, str], says: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LORAYARD_")}
    told = {"LORAYARD_MODEL": str(BASE), "LORAYARD_ADAPTER_STORE": "/store", **variables}

    run = subprocess.run(
        [sys.executable, "-m", "workers"],
        env=inherited | told,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert run.returncode == BAD_ENVIRONMENT, run.stderr
    assert "engine.not_started" in run.stderr
    assert says in run.stderr
