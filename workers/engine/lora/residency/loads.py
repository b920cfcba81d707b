"""One load per revision however many requests want it, and one answer to all of them when it fails."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.engine.core.errors import PROVEN_BY_FILES, AdapterError, AllSlotsPinned
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import stamp
from workers.engine.lora.loading import Loader, LoadResult
from workers.engine.lora.tables.adapter_weights import AdapterWeights

# After a failure that may pass, requests already waiting are told so; later ones start a new attempt.
RETRY_AFTER_S = 1.0
_MAX_REMEMBERED_FAILURES = 1024
DEFAULT_MAX_QUEUED = 256


@dataclass(frozen=True, slots=True)
class _Failure:
    error: AdapterError
    result: LoadResult
    at: float

    @property
    def may_pass(self) -> bool:
        """Whether a later attempt may do, though the files look as they did."""
        if self.error.retryable or isinstance(self.error, AllSlotsPinned):
            return True
        # The digest tells a good file from a bad one; what a store shows of it need not change with it.
        return self.result.request.revision is not None and self.error.code not in PROVEN_BY_FILES


@dataclass(frozen=True, slots=True)
class Arrival:
    """A loaded adapter that has no place on the host yet."""

    request: LoRARequest
    weights: AdapterWeights
    at: float


class Loads:
    """Loads under way, those that arrived and wait for a place, and failures that stand."""

    def __init__(self, loader: Loader, *, max_queued: int, clock: Callable[[], float]) -> None:
        self._loader = loader
        self._max_queued = max_queued
        self._clock = clock
        self._loading: dict[str, LoRARequest] = {}  # by revision, or by path if none was asked for
        self._failures: OrderedDict[tuple[str, str | None, str | None], _Failure] = OrderedDict()
        self.arrivals: deque[Arrival] = deque()

    @property
    def num_underway(self) -> int:
        """How many loads will need a place on the host."""
        return len(self._loading) + len(self.arrivals)

    @property
    def is_full(self) -> bool:
        """Tell whether no further load may be queued; requests then wait their turn outside."""
        return self.num_underway >= self._max_queued

    def is_loading(self, request: LoRARequest) -> bool:
        """Tell whether this request's load is queued or running."""
        return load_key(request) in self._loading

    def is_underway(self, request: LoRARequest) -> bool:
        """Tell whether this request's load is queued, running, or has arrived and waits for a place."""
        return self.is_loading(request) or self.has_arrived(request)

    def start(self, request: LoRARequest, *, is_ahead: bool = False) -> None:
        """Queue the load of a request for which none is under way; `is_ahead`: nobody waits for it yet."""
        self._loading[load_key(request)] = request
        self._loader.submit(request, is_ahead=is_ahead)

    def hurry(self, request: LoRARequest) -> None:
        """Say that somebody waits for this request's load, if it is under way."""
        if (started := self._loading.get(load_key(request))) is not None:
            self._loader.hurry(started)

    def cancel(self, request: LoRARequest) -> bool:
        """Take back a load that has not begun; False if there is none such."""
        started = self._loading.get(load_key(request))
        if started is None or not self._loader.cancel(started):
            return False
        del self._loading[load_key(request)]
        return True

    def collect(self) -> list[LoadResult]:
        """Return the loads that finished since the last call; the good ones are in `arrivals` too."""
        finished = []
        while (result := self._loader.poll()) is not None:
            self._settle(result)
            finished.append(result)
        return finished

    def await_answer(self, timeout_s: float) -> bool:
        """Wait for what the loader says next, at most so long; False, at once, if nothing is asked of it."""
        return self._loader.await_answer(timeout_s)

    def hold(self, is_held: bool) -> None:
        """Begin no more loads while what has arrived finds no place."""
        self._loader.hold(is_held)

    def finish(self, request: LoRARequest) -> list[LoadResult]:
        """Wait for a request's load, starting it if need be; returns what finished, its own last."""
        if load_key(request) not in self._loading:
            self.start(request)
        self.hurry(request)
        self._loader.hold(False)
        finished: list[LoadResult] = []
        while not finished or load_key(finished[-1].request) != load_key(request):
            finished.append(self._loader.wait())
            self._settle(finished[-1])
        return finished

    def has_arrived(self, request: LoRARequest) -> bool:
        """Tell whether a request's adapter has been read and waits for a place."""
        return any(load_key(request) in (load_key(one.request), one.weights.digest) for one in self.arrivals)

    def reject(self, arrival: Arrival, error: AdapterError) -> None:
        """Fail the requests for an arrival that finds no place; it is dropped."""
        self.arrivals.remove(arrival)
        self._remember(LoadResult(arrival.request, None, None, error, 0.0), error)

    def take_arrival(self, request: LoRARequest) -> AdapterWeights | None:
        """Take a request's loaded adapter out of those that wait for a place."""
        for arrival in self.arrivals:
            if load_key(arrival.request) == load_key(request):
                self.arrivals.remove(arrival)
                return arrival.weights
        return None

    def raise_failure(self, request: LoRARequest) -> None:
        """Raise this request's failure if it stands: its files are as they were, or it was a moment ago."""
        failure = self._standing_failure(request)
        if failure is not None:
            raise type(failure.error)(str(failure.error)) from failure.error

    def has_failed(self, request: LoRARequest) -> bool:
        """Tell whether `raise_failure` would raise."""
        return self._standing_failure(request) is not None

    def forget_retryable(self, request: LoRARequest) -> None:
        """Let a newly arrived request make a new attempt after a failure that may pass."""
        failure = self._failures.get(_failure_key(request))
        if failure is not None and failure.may_pass:
            del self._failures[_failure_key(request)]

    def close(self) -> None:
        """End the loader and whatever it still loads."""
        self._loader.close()

    def _settle(self, result: LoadResult) -> None:
        self._loading.pop(load_key(result.request), None)
        if result.weights is not None:
            self.arrivals.append(Arrival(result.request, result.weights, self._clock()))
            return
        assert result.error is not None
        self._remember(result, result.error)

    def _remember(self, result: LoadResult, error: AdapterError) -> None:
        self._failures[_failure_key(result.request)] = _Failure(error, result, self._clock())
        if len(self._failures) > _MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def _standing_failure(self, request: LoRARequest) -> _Failure | None:
        failure = self._failures.get(_failure_key(request))
        if failure is None or self._stands(failure):
            return failure
        del self._failures[_failure_key(request)]
        return None

    def _stands(self, failure: _Failure) -> bool:
        if failure.may_pass:
            return self._clock() < failure.at + RETRY_AFTER_S
        return stamp(Path(failure.result.request.lora_path)) == failure.result.files


def load_key(request: LoRARequest) -> str:
    """Return what loads of a request are one for: its revision, or its path if it asks for none.

    One that says what its base is called may be served although the others are refused.
    """
    files = request.revision or request.lora_path
    return f"{files}\0{request.base_model_name}" if request.base_model_name else files


def _failure_key(request: LoRARequest) -> tuple[str, str | None, str | None]:
    return request.lora_path, request.revision, request.base_model_name
