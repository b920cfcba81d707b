from __future__ import annotations

import threading

import pytest

from tests.polling import eventually
from workers.engine.errors import AdapterError, AdapterFileError, AdapterIOError
from workers.engine.lora.loader import Loader
from workers.engine.lora.request import LoRARequest
from workers.engine.lora.weights import AdapterWeights

REQUEST = LoRARequest("sql", 1, "/nowhere/sql")


def test_it_loads_on_a_thread_of_its_own_and_in_order() -> None:
    threads = []

    def load(request: LoRARequest) -> AdapterWeights:
        threads.append(threading.current_thread())
        return AdapterWeights(request.lora_name, 8, {})

    loader = Loader(load)
    for name in ("a", "b"):
        loader.submit(LoRARequest(name, 1, "/nowhere"))
    results = [loader.wait(), loader.wait()]
    loader.close()

    assert [result.weights.digest for result in results if result.weights] == ["a", "b"]
    assert threading.main_thread() not in threads
    assert all(result.load_ms >= 0 for result in results)


def test_poll_does_not_wait() -> None:
    may_finish = threading.Event()

    def load(request: LoRARequest) -> AdapterWeights:
        may_finish.wait(10)
        return AdapterWeights(request.lora_name, 8, {})

    loader = Loader(load)
    loader.submit(REQUEST)
    assert loader.poll() is None
    may_finish.set()
    result = eventually(loader.poll)
    loader.close()

    assert result.error is None


def test_closing_finishes_the_load_under_way_and_drops_the_queued_ones() -> None:
    started, may_finish = threading.Event(), threading.Event()
    loaded = []

    def load(request: LoRARequest) -> AdapterWeights:
        started.set()
        may_finish.wait(10)
        loaded.append(request.lora_name)
        return AdapterWeights(request.lora_name, 8, {})

    loader = Loader(load)
    for name in ("a", "b", "c"):
        loader.submit(LoRARequest(name, 1, "/nowhere"))
    assert started.wait(10)
    closing = threading.Thread(target=loader.close)
    closing.start()
    eventually(loader._is_closing.is_set)
    may_finish.set()
    closing.join(10)

    assert loaded == ["a"]


@pytest.mark.parametrize(
    ("raised", "kind", "retryable"),
    [
        (AdapterFileError("adapter 'sql': corrupt"), AdapterFileError, False),
        (OSError(5, "Input/output error"), AdapterIOError, True),
        (MemoryError(), AdapterIOError, True),
        (ZeroDivisionError("bug"), AdapterError, False),
    ],
)
def test_a_failure_is_a_result_and_the_next_adapter_still_loads(
    raised: Exception, kind: type[AdapterError], retryable: bool
) -> None:
    def load(request: LoRARequest) -> AdapterWeights:
        if request.lora_name == "sql":
            raise raised
        return AdapterWeights("good", 8, {})

    loader = Loader(load)
    loader.submit(REQUEST)
    loader.submit(LoRARequest("good", 2, "/nowhere/good"))
    failed, good = loader.wait(), loader.wait()
    loader.close()

    assert type(failed.error) is kind
    assert failed.error.retryable is retryable
    assert "'sql'" in str(failed.error)
    assert good.weights is not None
