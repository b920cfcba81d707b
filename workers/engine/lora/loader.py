"""Adapters are read and packed beside the engine's steps, so that a step never waits for a disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.engine.errors import AdapterError, AdapterIOError
from workers.engine.lora.adapter_files import Stamp, stamp
from workers.engine.lora.request import LoRARequest
from workers.engine.lora.weights import AdapterWeights


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of a load: weights, or the reason there are none."""

    request: LoRARequest
    files: Stamp | None  # their state just before they were read
    weights: AdapterWeights | None
    error: AdapterError | None
    load_ms: float


class Loader:
    """One background thread that turns requests into results, in order."""

    def __init__(self, load: Callable[[LoRARequest], AdapterWeights]) -> None:
        self._load = load
        self._requests: queue.SimpleQueue[LoRARequest | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[LoadResult] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)
        self._thread.start()

    def submit(self, request: LoRARequest) -> None:
        """Queue a load; its result comes from `poll` or `wait`."""
        self._requests.put(request)

    def poll(self) -> LoadResult | None:
        """Return a finished load, if there is one; costs a fraction of a microsecond where there is none."""
        if self._results.empty():
            return None
        return self._results.get_nowait()

    def wait(self) -> LoadResult:
        """Return the next finished load; call it only while one is queued."""
        return self._results.get()

    def close(self) -> None:
        """Finish the load under way, drop the queued ones and end the thread."""
        self._is_closing.set()
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (request := self._requests.get()) is not None and not self._is_closing.is_set():
            started = time.perf_counter()
            files = stamp(Path(request.lora_path))
            weights, error = self._attempt(request)
            load_ms = (time.perf_counter() - started) * 1000.0
            self._results.put(LoadResult(request, files, weights, error, load_ms))

    def _attempt(self, request: LoRARequest) -> tuple[AdapterWeights | None, AdapterError | None]:
        try:
            return self._load(request), None
        except AdapterError as error:
            return None, error
        except (MemoryError, OSError) as error:
            return None, AdapterIOError(
                f"adapter {request.lora_name!r} ({request.lora_path}): loading failed ({error!r}); try again"
            )
        except Exception as error:  # noqa: BLE001  whatever one adapter does, the next must still load
            return None, AdapterError(
                f"adapter {request.lora_name!r} ({request.lora_path}): unexpected {error!r} while loading; "
                "please report it, with the files"
            )
