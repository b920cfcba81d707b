"""The engine's side of loading: hand work to the loader process, and survive whatever becomes of it."""

from __future__ import annotations

import pickle
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from workers.engine.core.errors import AdapterError, AdapterLoaderDied, AdapterLoadTimeout
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.adapter_files import Stamp
from workers.engine.lora.files.validate import adapter_label
from workers.engine.lora.loading.child import LoaderChild, forked
from workers.engine.lora.loading.spec import Load, Loaded, LoadSpec, Ready
from workers.engine.lora.tables.adapter_weights import AdapterWeights

_MAX_SENT = 2
"""One load runs and one is at hand, so that the process does not idle until the engine's next step."""

_START_TIMEOUT_S = 120.0
_GRACE_S = 5.0
"""The process ends a load in time by itself; one that is stuck beyond that is killed."""

_MAX_LOOK_S = 10.0
"""A look that comes later than any step lasts counts no more: this process was stopped, most likely together
with the other one."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of a load: weights, or the reason there are none."""

    request: LoRARequest
    files: Stamp | None  # their state just before they were read
    weights: AdapterWeights | None
    error: AdapterError | None
    load_ms: float


def start_process() -> LoaderChild | None:
    """Start a loader process ahead of its first load; None if that fails, which the first load will tell."""
    with suppress(OSError, RuntimeError):
        return LoaderChild()
    return None


def fork_process() -> LoaderChild | None:
    """Copy this process, which has but begun, to be a loader: it needs no second import of torch.

    None if that fails, or on a system whose processes are not to be copied: `start_process` starts one.
    """
    if sys.platform != "linux":
        return None
    with suppress(OSError, RuntimeError):
        return LoaderChild(forked)
    return None


class Loader:
    """Turns requests into results, in order; the process dying costs the load under way and no other."""

    def __init__(
        self,
        spec: LoadSpec,
        child: LoaderChild | None = None,
        *,
        start: Callable[[], LoaderChild] | None = None,
    ) -> None:
        """`child` is a process that `start_process` has started; without it the first load starts one."""
        self._spec = spec
        self._start = start or LoaderChild
        self._queued: deque[LoRARequest] = deque()
        self._sent: deque[LoRARequest] = deque()
        self._ahead: set[LoRARequest] = set()  # those of them for which nobody waits
        self._results: deque[LoadResult] = deque()  # of loads that no process has answered
        self._child: LoaderChild | None = None
        self._is_held = False
        self._is_ready = False
        self._waited_s = 0.0  # for the first of the sent ones
        self._looked_at = 0.0
        if child is not None:
            self._employ(child)

    def submit(self, request: LoRARequest, *, is_ahead: bool = False) -> None:
        """Queue a load; its result comes from `poll` or `wait`. Nobody waits yet for one that `is_ahead`."""
        self._queued.append(request)
        if is_ahead:
            self._ahead.add(request)
        self._dispatch()

    def hurry(self, request: LoRARequest) -> None:
        """Say that somebody waits for a load now."""
        if request in self._ahead:
            self._ahead.discard(request)
            self._set_priority()

    def cancel(self, request: LoRARequest) -> bool:
        """Take back a load that has not been handed to the process; False if it has."""
        if request not in self._queued:
            return False
        self._queued.remove(request)
        self._ahead.discard(request)
        return True

    def hold(self, is_held: bool) -> None:
        """Hand nothing more to the process until told otherwise."""
        self._is_held = is_held
        self._dispatch()

    def poll(self) -> LoadResult | None:
        """Return a finished load, if there is one; costs next to nothing if none is under way."""
        if self._results:
            return self._results.popleft()
        return self._next() if self._sent else None

    def wait(self) -> LoadResult:
        """Return the next finished load; call it only while one is queued."""
        while (result := self.poll()) is None:
            assert self._sent, "nothing is being loaded"
            assert self._child is not None
            select.select([self._child.channel], [], [], _GRACE_S)
        return result

    def await_answer(self, timeout_s: float) -> bool:
        """Wait for what the process says next, at most so long; False, at once, if nothing is asked of it."""
        if self._child is None or not self._sent:
            return False
        select.select([self._child.channel], [], [], timeout_s)
        return True

    def close(self) -> None:
        """End the process and drop what it holds; closing twice does nothing."""
        self._queued.clear()
        self._sent.clear()
        self._ahead.clear()
        self._results.clear()
        self._drop_child()

    def _employ(self, child: LoaderChild) -> LoaderChild:
        self._child = child
        self._is_ready = False
        with suppress(OSError):  # it died at once: `receive` will say so
            child.channel.send(self._spec)
        return child

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _dispatch(self) -> None:
        """Keep the process supplied, starting it again if it is gone."""
        while self._queued and len(self._sent) < _MAX_SENT and not self._is_held:
            request = self._queued.popleft()
            try:
                child = self._child or self._employ(self._start())
            except (OSError, RuntimeError) as error:
                self._results.append(_failed(request, _unstartable(request, error)))
                continue
            if not self._sent:
                self._wait_anew()
            self._sent.append(request)
            with suppress(OSError):  # it died: `receive` will say so, after what it had answered
                child.channel.send(Load(request))
        self._set_priority()

    def _set_priority(self) -> None:
        """Have the process give way to steps unless somebody waits for one of the loads it has."""
        if self._child is not None and self._sent:
            self._child.give_way(self._ahead.issuperset(self._sent))

    def _next(self) -> LoadResult | None:
        assert self._child is not None
        try:
            answer = self._child.channel.receive()
        except BlockingIOError:
            return self._give_up() if self._is_overdue() else None
        except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            return self._bury(error)
        if isinstance(answer, Ready):
            self._is_ready = True
            self._wait_anew()
            return None
        assert isinstance(answer, Loaded), f"the loader process sent {type(answer).__name__}"
        request = self._sent.popleft()
        self._ahead.discard(request)
        self._wait_anew()
        self._dispatch()
        return LoadResult(request, answer.files, answer.weights, answer.error, answer.load_ms)

    def _wait_anew(self) -> None:
        self._waited_s, self._looked_at = 0.0, time.monotonic()

    def _is_overdue(self) -> bool:
        now = time.monotonic()
        self._waited_s += min(now - self._looked_at, _MAX_LOOK_S)
        self._looked_at = now
        return self._waited_s > (self._spec.timeout_s + _GRACE_S if self._is_ready else _START_TIMEOUT_S)

    def _give_up(self) -> LoadResult:
        label = adapter_label(self._sent[0].lora_name, self._sent[0].lora_path)
        what = "it was not loaded" if self._is_ready else "the loader process was not ready"
        return self._replace_child(
            AdapterLoadTimeout(
                f"{label}: {what} after {self._waited_s:.1f} s "
                f"(lora_load_timeout_s={self._spec.timeout_s:g}); look for slow storage, or allow more time"
            )
        )

    def _bury(self, reason: Exception) -> LoadResult:
        assert self._child is not None
        self._child.close()
        label = adapter_label(self._sent[0].lora_name, self._sent[0].lora_path)
        return self._replace_child(
            AdapterLoaderDied(
                f"{label}: the loader process ended with exit code {self._child.exitcode} while it held this "
                f"adapter ({reason}); try again, and if that repeats look at its files and the free memory"
            )
        )

    def _replace_child(self, error: AdapterError) -> LoadResult:
        """Fail the load under way and end the process with it; the others start over in a new one."""
        request = self._sent.popleft()
        self._ahead.discard(request)
        self._queued.extendleft(reversed(self._sent))
        self._sent.clear()
        self._drop_child()
        self._dispatch()
        return _failed(request, error)


def _failed(request: LoRARequest, error: AdapterError) -> LoadResult:
    return LoadResult(request, None, None, error, 0.0)


def _unstartable(request: LoRARequest, error: Exception) -> AdapterLoaderDied:
    label = adapter_label(request.lora_name, request.lora_path)
    return AdapterLoaderDied(f"{label}: the loader process cannot be started ({error}); try again")
