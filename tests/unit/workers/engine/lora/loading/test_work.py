from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.unit.workers.engine.lora.adapter_writer import write_adapter
from tests.unit.workers.engine.lora.manager_fixtures import spec_of, stuck_request
from workers.engine.core.errors import AdapterError, AdapterFileError, AdapterIOError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import stamp
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.loading import work
from workers.engine.lora.loading.work import _NUM_RINGS, _OutOfTime, _time_limit, load


def _request(path: Path) -> LoRARequest:
    return LoRARequest("sql", 1, str(path))


def test_a_good_adapter_comes_packed_with_its_digest_and_the_state_of_its_files(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "sql", rank=8)

    loaded = load(_request(path), spec_of())

    assert loaded.error is None
    assert loaded.weights is not None
    assert (loaded.weights.digest, loaded.weights.rank) == (adapter_digest(path), 8)
    assert loaded.files == stamp(path)
    assert loaded.load_ms > 0


def test_a_read_that_hangs_is_ended(tmp_path: Path) -> None:
    loaded = load(stuck_request(tmp_path), spec_of(timeout_s=0.2))

    assert loaded.weights is None
    assert loaded.error is not None
    assert (loaded.error.code, loaded.error.retryable) == ("adapter_load_timeout", True)
    assert "'stuck'" in str(loaded.error)
    assert "lora_load_timeout_s=0.2" in str(loaded.error)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert load(_request(write_adapter(tmp_path / "good")), spec_of()).error is None


def test_alarms_that_came_while_the_process_was_stopped_are_one() -> None:
    with _time_limit(3600.0):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        for _ in range(3 * _NUM_RINGS):
            signal.raise_signal(signal.SIGALRM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        for _ in range(_NUM_RINGS - 2):
            signal.raise_signal(signal.SIGALRM)
        with pytest.raises(_OutOfTime):
            signal.raise_signal(signal.SIGALRM)


def test_an_adapter_larger_than_all_the_memory_set_aside_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "sql", rank=8)
    packed = load(_request(path), spec_of()).weights
    assert packed is not None

    exact = load(_request(path), spec_of(max_bytes=packed.num_bytes))
    over = load(_request(path), spec_of(max_bytes=packed.num_bytes - 1))

    assert exact.error is None
    assert over.error is not None
    assert (over.error.code, over.error.retryable) == ("adapter_too_large", False)
    assert f"{packed.num_bytes} bytes" in str(over.error)
    assert f"max_cpu_lora_bytes is {packed.num_bytes - 1}" in str(over.error)


@pytest.mark.parametrize(
    ("raised", "kind", "retryable"),
    [
        (AdapterFileError("adapter 'sql': corrupt"), AdapterFileError, False),
        (OSError(5, "Input/output error"), AdapterIOError, True),
        (MemoryError(), AdapterIOError, True),
        (ZeroDivisionError("bug"), AdapterError, False),
    ],
)
def test_a_failure_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[AdapterError], retryable: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(work, "check_adapter", fail)

    error = load(_request(Path("/nowhere")), spec_of()).error

    assert type(error) is kind
    assert error.retryable is retryable
    assert "'sql'" in str(error)
