"""The engine's loop: schedule, launch, settle; every request ends in exactly one output."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from types import TracebackType
from typing import NamedTuple, Self

from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.errors import EngineError, NonFiniteLogits, RequestError, RowFailed
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.outputs import RequestOutput, TopLogprobs
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.core.sequence import SequenceState, Span
from workers.engine.lora.loading import LoaderChild
from workers.engine.scheduling.batching import Refusal, Schedule
from workers.engine.serving.adapter_controls import AdapterControls
from workers.engine.serving.assembly import assemble
from workers.engine.serving.engine_counters import Capacity, EngineCounters, EngineStats
from workers.engine.serving.executor import InFlightStep, SampledStep
from workers.engine.serving.input_processor import Prompt
from workers.engine.serving.offline import OfflineServing
from workers.engine.serving.output_processor import Ending, why_failed
from workers.engine.serving.request_state import RequestState

_IDLE_POLL_S = 0.001
"""Pause of a step that finds only requests whose adapters are still loading or copied."""

_LOADING_POLL_S = 0.003
"""That pause where the loader's answer ends it: an engine that looks too often takes the loader's core."""


class _Launched(NamedTuple):
    """A step whose forward pass is launched."""

    spans: list[Span]
    step: InFlightStep
    began_s: float


class _Flight(NamedTuple):
    """A step all of which is launched, until its results are here."""

    spans: list[Span]
    sampled: list[Span]
    prompted: list[SequenceState]
    step: SampledStep
    began_s: float


class Launch(NamedTuple):
    """A step that is about to be launched, with what is in flight already."""

    request_ids: tuple[str, ...]
    num_tokens: int
    predicted_s: float  # by what steps have taken until now; 0 for the first


class LLMEngine(AdapterControls, OfflineServing):
    """One base model and the adapters upon it, serving many requests at once.

    Not thread-safe: one thread calls it; leaving its `with` block closes it. Requests that cannot be served
    raise at `add_request`; what goes wrong later ends as an output with finish_reason "error". Nothing falls
    back to the base model.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        look_ahead: int = 0,
        loader_child: LoaderChild | None = None,
        on_compiling: Callable[[], None] = lambda: None,
    ) -> None:
        """`look_ahead` 1 launches each step before the one before it is settled; on a CPU it is for tests.

        `loader_child` is a loader process for this engine; without it one is started if LoRA is enabled.
        `on_compiling` is told when the model is loaded, and steps are compiled or captured.
        """
        self._parts = assemble(
            config, look_ahead=look_ahead, loader_child=loader_child, on_compiling=on_compiling
        )
        self.info: EngineInfo = self._parts.info
        self._by_id: dict[str, RequestState] = {}
        self._started: list[str] = []
        self._launched: _Launched | None = None
        self._flight: _Flight | None = None
        self.on_started: Callable[[tuple[str, ...]], None] | None = None
        """Told of the requests that join the running batch for the first time, before their first step."""
        self.on_launch: Callable[[Launch], None] | None = None
        """Told of each step before anything of it is computed."""
        self.on_settled: Callable[[], None] | None = None
        """Told of each step whose results are there, before anything is made of them."""
        self._undelivered: list[RequestOutput] = []
        self._ids = count()
        self._counters = EngineCounters()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        lora_request: AnyLoRA | None = None,
        *,
        cache_salt: str | None = None,
    ) -> None:
        """Queue a request; raises `RequestError` if it is known at once that it cannot be served.

        Requests share cached prefixes only with those of the same `cache_salt`.
        """
        if request_id in self._by_id:
            raise RequestError(f"request id {request_id!r} is in use; give each request its own")
        self._enqueue(self._new_request(request_id, prompt, params, lora_request, cache_salt))

    def step(self) -> list[RequestOutput]:
        """Run one step and return the outputs of the requests that ended with it.

        Those that stream (`SamplingParams.output_kind`) have one for each token as well, not `finished`.
        If the executor looks ahead, this call launches a step that the next one settles, and the outputs
        are those of the step before.
        """
        try:
            return self._step()
        except BaseException:  # an interrupt, or an executor that fails
            self._recall_steps()
            raise

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now; returns its output with what it has generated, None if it is not held."""
        outputs = self._end_all(request_id, Ending("abort"), time.monotonic())
        return outputs[0] if outputs else None

    def has_unfinished_requests(self) -> bool:
        """Whether `step` still has something to do, to settle or to deliver."""
        return bool(self._by_id or self._undelivered) or self._flight is not None

    @property
    def started(self) -> tuple[str, ...]:
        """The requests that joined the running batch for the first time with the latest step."""
        return tuple(self._started)

    def stats(self) -> EngineStats:
        """Return the engine's counters."""
        parts = self._parts
        return self._counters.stats(
            parts.batcher,
            parts.allocator,
            parts.prefixes,
            parts.adapters,
            num_replayed_steps=parts.executor.num_replayed_steps,
        )

    def capacity(self) -> Capacity:
        """Return how much more the engine could take on; cheap enough for every step."""
        batcher = self._parts.batcher
        return Capacity(
            free_seqs=max(0, self.info.max_num_seqs - len(batcher)),
            free_kv_blocks=self._parts.allocator.num_free,
            waiting=len(batcher.waiting),
            busy_ms=self._counters.busy_ms,
        )

    def check_integrity(self) -> None:
        """Assert that every cache block is accounted for, in use, cached or blank; looks at each of them."""
        self._parts.batcher.check()

    def close(self) -> None:
        """Stop background work; the engine is not used afterwards."""
        if self._flight is not None:  # it reads what is about to be freed
            self._flight.step.wait()
            self._flight = None
        self._parts.grammars.close()
        if self._parts.adapters is not None:
            self._parts.adapters.close()

    def _new_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        lora: AnyLoRA | None,
        cache_salt: str | None = None,
    ) -> RequestState:
        input_processor, now_s = self._parts.input_processor, time.monotonic()
        sequences = input_processor.sequences(
            request_id, prompt, params, lora, arrival_time_s=now_s, cache_salt=cache_salt
        )
        return RequestState(sequences)

    def _new_id(self) -> str:
        return next(new for number in self._ids if (new := f"generate-{number}") not in self._by_id)

    def _enqueue(self, request: RequestState) -> None:
        self._by_id[request.request_id] = request
        for member in request.sequences[0].composition:
            self._adapters.prefetch(member.lora)
        for sequence in request.sequences:
            self._parts.batcher.add(sequence)

    def _step(self) -> list[RequestOutput]:
        self._started = []
        began_s = time.monotonic()
        if self._parts.adapters is not None:
            self._parts.adapters.collect()
        schedule = self._parts.batcher.schedule()
        refusals, is_idle = schedule.refusals, self._flight is None and not schedule.rows
        outputs, self._undelivered = self._undelivered, []
        if schedule.rows:
            self._launch_forward(schedule, began_s)
        if self._flight is not None:
            outputs += self._settle_flight(refusals)
            refusals = []
        if self._launched is not None:
            self._launch_sampling(self._launched)
            if self._parts.executor.look_ahead == 0:
                outputs += self._settle_flight(refusals)
                refusals = []
        if is_idle and self._parts.batcher.waiting and not outputs and not refusals:
            self._rest()
        return outputs + self._refuse(refusals)

    def _rest(self) -> None:
        """Let a moment pass in which nothing can be computed; what the loader says ends it."""
        adapters = self._parts.adapters
        if adapters is None or not adapters.await_load(_LOADING_POLL_S):
            time.sleep(_IDLE_POLL_S)

    def _launch_forward(self, schedule: Schedule, began_s: float) -> None:
        self._mark_started(schedule, began_s)
        if self.on_launch is not None:
            self.on_launch(self._launch_of(schedule))
        built = self._parts.builder.build(schedule)
        step = self._parts.executor.forward(built.forward)
        self._parts.batcher.launch(built.spans)
        self._launched = _Launched(built.spans, step, began_s)

    def _launch_of(self, schedule: Schedule) -> Launch:
        flying = [] if self._flight is None else self._flight.spans
        ids = [span.sequence.request_id for span in flying] + [r.sequence.request_id for r in schedule.rows]
        steps = [sum(span.num_rows for span in flying), sum(row.num_tokens for row in schedule.rows)]
        times = self._counters.times
        predicted_s = sum(times.predict_s(num_tokens) for num_tokens in steps if num_tokens)
        return Launch(tuple(dict.fromkeys(ids)), sum(steps), predicted_s)

    def _launch_sampling(self, launched: _Launched) -> None:
        """Launch the choice of the next tokens of those who are still there; the step is then in flight."""
        spans, step, began_s = launched
        living = [span for span in spans if span.is_live]
        sampling, sampled, prompted = self._parts.builder.build_sampling(living)
        sampled_step = self._parts.executor.sample(step, sampling)
        for place, span in enumerate(sampled):
            span.sequence.pending_place = place
        self._launched, self._flight = None, _Flight(spans, sampled, prompted, sampled_step, began_s)

    def _recall_steps(self) -> None:
        """Have the rows of all steps in flight computed once more, be they on the device or half settled."""
        self._launched = self._flight = None
        self._parts.batcher.recall()

    def _settle_flight(self, refusals: Sequence[Refusal]) -> list[RequestOutput]:
        """Wait for the step in flight and take in its results, and those of the latest admission."""
        assert self._flight is not None, "nothing is in flight"
        spans, sampled, prompted, step, began_s = self._flight
        result = step.wait()
        now_s, self._flight = time.monotonic(), None
        if self.on_settled is not None:
            self.on_settled()
        self._counters.charge(spans, began_s, now_s)
        self._parts.batcher.land(spans)
        # First, for they end what else there is of their requests, which may have rows in this step.
        outputs = self._refuse(refusals)
        for sequence, found in zip(prompted, result.prompt_logprobs, strict=True):
            if not sequence.has_ended:
                sequence.note_prompt(found)
        rows = zip(sampled, result.token_ids, result.failed, strict=True)
        for place, (span, token_id, failed) in enumerate(rows):
            sequence = span.sequence
            sequence.pending_place = None
            if sequence.has_ended:
                continue  # meanwhile, or because another completion of its request has just failed
            if failed or (sequence.grammar is not None and sequence.grammar.error is not None):
                outputs += self._fail(sequence, place in result.barred, now_s)
                continue
            if span.is_live:  # a preempted sequence keeps the token, which it would only draw again
                self._parts.batcher.confirm(sequence)
            outputs += self._append(sequence, token_id, now_s, result.logprobs.get(place))
        self._free_retired()
        return outputs

    def _append(
        self, sequence: SequenceState, token_id: int, now_s: float, logprobs: TopLogprobs | None
    ) -> list[RequestOutput]:
        """Append a sequence's token and see what follows; what raises here ends its request alone."""
        processor = self._parts.output_processor
        outputs: list[RequestOutput] = []
        try:
            sequence.append(token_id, now_s, logprobs)
            ending = processor.ending(sequence)
            if sequence.stream is not None:
                outputs.append(processor.partial(sequence, ending, now_s))
        except Exception as error:  # noqa: BLE001 - whatever it was, no other row has a part in it
            traceback.print_exception(error)
            return self._end_all(sequence.request_id, Ending("error"), now_s, RowFailed(error))
        if ending is not None:
            outputs += self._end(sequence, ending, now_s)
        return outputs

    def _settle_rest(self) -> list[RequestOutput]:
        """Settle a step in flight, if nothing is left that a later one would have to do."""
        return [] if self._by_id or self._flight is None else self._settle_flight([])

    def _mark_started(self, schedule: Schedule, now_s: float) -> None:
        for row in schedule.rows:
            if row.sequence.started_time_s is None:
                row.sequence.started_time_s = now_s
                request = self._by_id[row.sequence.request_id]
                if not request.is_started:
                    request.is_started = True
                    self._started.append(request.request_id)
        if self._started and self.on_started is not None:
            self.on_started(tuple(self._started))

    def _refuse(self, refusals: Sequence[Refusal]) -> list[RequestOutput]:
        """End requests whose adapters turned out unusable; the batch has let go of the refused sequences."""
        outputs, now_s = [], time.monotonic()
        for sequence, error in refusals:
            outputs += self._settle(sequence, Ending("error"), now_s, error)
        for sequence, error in refusals:
            outputs += self._end_all(sequence.request_id, Ending("error"), now_s, error)
        return outputs

    def _fail(self, sequence: SequenceState, is_barred: bool, now_s: float) -> list[RequestOutput]:
        error = why_failed(sequence, is_barred=is_barred)
        if isinstance(error, NonFiniteLogits):
            self._parts.batcher.disown(sequence)
            for member in sequence.composition:
                self._adapters.count_non_finite(member.lora)
        return self._end_all(sequence.request_id, Ending("error"), now_s, error)

    def _end_all(
        self, request_id: str, ending: Ending, now_s: float, error: EngineError | None = None
    ) -> list[RequestOutput]:
        """End what is left of a request, if it is still held."""
        request = self._by_id.get(request_id)
        sequences = [] if request is None else list(request.sequences)
        return [output for one in sequences for output in self._end(one, ending, now_s, error)]

    def _end(
        self, sequence: SequenceState, ending: Ending, now_s: float, error: EngineError | None = None
    ) -> list[RequestOutput]:
        for member in sequence.composition:
            sequence.adapter_use += self._adapters.take_uncharged(member.lora)
            sequence.adapter_warnings += self._adapters.warnings_of(member.lora)
        self._parts.batcher.remove(sequence)
        self._let_go_of_adapters(sequence)
        return self._settle(sequence, ending, now_s, error)

    def _settle(
        self, sequence: SequenceState, ending: Ending, now_s: float, error: EngineError | None
    ) -> list[RequestOutput]:
        """Close a sequence's accounts; return the output of its whole request, if it was the last of it."""
        self._counters.close(sequence)
        try:
            output = self._parts.output_processor.output(sequence, ending, now_s, error)
        except Exception as failure:  # noqa: BLE001 - whatever it was, no other request has a part in it
            traceback.print_exception(failure)
            output = self._parts.output_processor.failed(sequence, now_s, error or RowFailed(failure))
        whole = self._by_id[sequence.request_id].end(sequence, output)
        if whole is None:
            return []
        del self._by_id[sequence.request_id]
        return [whole]
