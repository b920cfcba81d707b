"""A worker is told its device by the environment, and a wrong value is refused with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorayard.cli.settings import PoolSettings
from lorayard.process.environment import BAD_ENVIRONMENT, readable_settings
from scheduler.checkpoint import describe_pool
from scheduler.settings import SchedulerSettings
from tests.unit.lorayard.contract.test_pool import write_checkpoint
from workers.launch import _engine_config
from workers.settings import WorkerSettings


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What every worker is told."""
    monkeypatch.setenv("LORAYARD_MODEL", str(write_checkpoint(tmp_path)))
    monkeypatch.setenv("LORAYARD_ADAPTER_STORE", "/store")
    return tmp_path


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"LORAYARD_{name}", value)


def test_a_card_and_its_memory_reach_the_engine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "DEVICE": "cuda:1",
        "DTYPE": "float16",
        "GPU_MEMORY_UTILIZATION": "0.45",
        "ENFORCE_EAGER": "true",
        "LORA_POOL_BYTES": "1000000",
    }
    set_all(monkeypatch, told)

    config = _engine_config(WorkerSettings())

    assert (config.device, config.dtype, config.kernels) == ("cuda:1", "float16", None)
    assert (config.gpu_memory_utilization, config.enforce_eager) == (0.45, True)
    assert config.lora_pool_bytes == 1_000_000


def test_the_kernels_of_a_card_can_be_asked_for_on_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"KERNELS": "triton"})

    config = _engine_config(WorkerSettings())

    assert (config.device, config.kernels) == ("cpu", "triton")


def test_a_worker_can_be_told_to_give_a_job_the_same_bits_in_every_batch(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _engine_config(WorkerSettings())
    set_all(monkeypatch, {"BATCH_INVARIANT": "true"})

    assert (before.batch_invariant, _engine_config(WorkerSettings()).batch_invariant) == (False, True)


def test_what_generation_config_json_is_used_for_reaches_the_engine_and_names_the_pool(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = WorkerSettings()
    monkeypatch.setenv("LORAYARD_DATABASE_URL", "postgresql://here")
    set_all(monkeypatch, {"GENERATION_CONFIG": "none"})

    settings = WorkerSettings()

    assert (_engine_config(before).generation_config, _engine_config(settings).generation_config) == (
        "auto",
        "none",
    )
    assert settings.pool != before.pool
    assert PoolSettings().pool == settings.pool
    described = describe_pool(model, "float32", None, generation_config=SchedulerSettings().generation_config)
    assert described.pool == settings.pool


def test_without_any_of_it_the_engine_runs_as_before(model: Path) -> None:
    config = _engine_config(WorkerSettings())

    assert (config.device, config.dtype, config.kernels) == ("cpu", "float32", None)
    assert (config.gpu_memory_utilization, config.enforce_eager, config.lora_pool_bytes) == (0.9, False, None)


def test_the_pool_of_a_worker_is_that_of_its_model_and_dtype_whatever_its_device(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"DTYPE": "bfloat16"})
    on_cpu = WorkerSettings().pool

    set_all(monkeypatch, {"DEVICE": "cuda"})

    assert WorkerSettings().pool == on_cpu


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("DEVICE", "gpu", "give cpu, cuda, or cuda:N"),
        ("DEVICE", "cuda:", "give cpu, cuda, or cuda:N"),
        ("DEVICE", " ", "give cpu, cuda, or cuda:N"),
        ("GENERATION_CONFIG", "vllm", "should be 'auto' or 'none'"),
        ("KERNELS", "cutlass", "should be 'triton'"),
        ("DTYPE", "int8", "'float32', 'bfloat16' or 'float16'"),
        ("GPU_MEMORY_UTILIZATION", "0", "greater than 0"),
        ("GPU_MEMORY_UTILIZATION", "1.01", "less than or equal to 1"),
        ("GPU_MEMORY_UTILIZATION", "nan", "less than or equal to 1"),
        ("ENFORCE_EAGER", "perhaps", "should be a valid boolean"),
        ("BATCH_INVARIANT", "perhaps", "should be a valid boolean"),
        ("LORA_POOL_BYTES", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_ends_the_worker_with_its_name_and_the_remedy(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    remedy: str,
) -> None:
    set_all(monkeypatch, {name: value})

    with pytest.raises(SystemExit) as ended, readable_settings("workers"):
        WorkerSettings()

    said = capsys.readouterr().err
    assert ended.value.code == BAD_ENVIRONMENT
    assert f"LORAYARD_{name}={value!r}" in said
    assert remedy in said
