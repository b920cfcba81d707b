"""The engine's loop: schedule, run, postprocess; every request ends in exactly one output."""

from __future__ import annotations

import time
from collections.abc import Sequence as ListLike
from itertools import count
from types import TracebackType
from typing import Self

from workers.engine.core.config import EngineConfig
from workers.engine.core.errors import EngineError, NonFiniteLogits, RequestError
from workers.engine.core.lora_request import AnyLoRA
from workers.engine.core.outputs import RequestOutput
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.core.sequence import Sequence
from workers.engine.core.step_input import StepOutput
from workers.engine.scheduling.batching import Refusal, Schedule
from workers.engine.scheduling.step_builder import BuiltStep
from workers.engine.serving.adapter_controls import AdapterControls
from workers.engine.serving.assembly import EngineInfo, assemble
from workers.engine.serving.engine_counters import Accounts, EngineStats, Room
from workers.engine.serving.input_processor import Prompt
from workers.engine.serving.offline import OfflineServing
from workers.engine.serving.output_processor import Ending, why_failed
from workers.engine.serving.request_state import LiveRequest

_IDLE_POLL_S = 0.001
"""Pause of a step that finds only requests whose adapters are still loading."""


class LLMEngine(AdapterControls, OfflineServing):
    """One base model and the adapters upon it, serving many requests at once.

    Not thread-safe: one thread calls it; leaving its `with` block closes it. Requests that cannot be served
    raise at `add_request`; what goes wrong later ends as an output with finish_reason "error". Nothing falls
    back to the base model.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._parts = assemble(config)
        self.info: EngineInfo = self._parts.info
        self._by_id: dict[str, LiveRequest] = {}
        self._started: list[str] = []
        self._undelivered: list[RequestOutput] = []
        self._ids = count()
        self._accounts = Accounts()

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
        """
        outputs, self._undelivered = self._undelivered, []
        self._started = []
        began_s = time.monotonic()
        if self._parts.adapters is not None:
            self._parts.adapters.collect()
        schedule = self._parts.batcher.schedule()
        if schedule.rows:
            self._mark_started(schedule, began_s)
            built = self._parts.builder.build(schedule)
            result = self._parts.executor.execute(built.step)
            now_s = time.monotonic()
            self._accounts.charge(schedule.rows, (now_s - began_s) * 1000.0)
            # First, for they end what else there is of their requests, which may have rows in this step.
            outputs += self._refuse(schedule.refusals)
            return outputs + self._postprocess(schedule, built, result, now_s)
        if self._parts.batcher.waiting and not outputs and not schedule.refusals:
            time.sleep(_IDLE_POLL_S)
        return outputs + self._refuse(schedule.refusals)

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now; returns its output with what it has generated, None if it is not held."""
        outputs = self._end_all(request_id, Ending("abort"), time.monotonic())
        return outputs[0] if outputs else None

    def has_unfinished_requests(self) -> bool:
        """Whether `step` still has something to do or to deliver."""
        return bool(self._by_id or self._undelivered)

    @property
    def started(self) -> tuple[str, ...]:
        """The requests that joined the running batch for the first time with the latest step."""
        return tuple(self._started)

    def stats(self) -> EngineStats:
        """Return the engine's counters."""
        parts = self._parts
        return self._accounts.stats(parts.batcher, parts.allocator, parts.prefixes, parts.adapters)

    def room(self) -> Room:
        """Return how much more the engine could take on; cheap enough for every step."""
        batcher = self._parts.batcher
        return Room(
            free_seqs=max(0, self.info.max_num_seqs - len(batcher)),
            free_kv_blocks=self._parts.allocator.num_free,
            waiting=len(batcher.waiting),
            busy_ms=self._accounts.busy_ms,
        )

    def check_integrity(self) -> None:
        """Assert that every cache block is accounted for, in use, cached or blank; looks at each of them."""
        self._parts.batcher.check()

    def close(self) -> None:
        """Stop background work; the engine is not used afterwards."""
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
    ) -> LiveRequest:
        checker, now_s = self._parts.checker, time.monotonic()
        sequences = checker.sequences(
            request_id, prompt, params, lora, arrival_time_s=now_s, cache_salt=cache_salt
        )
        return LiveRequest(sequences)

    def _new_id(self) -> str:
        return next(new for number in self._ids if (new := f"generate-{number}") not in self._by_id)

    def _enqueue(self, request: LiveRequest) -> None:
        self._by_id[request.request_id] = request
        for member in request.sequences[0].composition:
            self._adapters.prefetch(member.lora)
        for sequence in request.sequences:
            self._parts.batcher.add(sequence)

    def _mark_started(self, schedule: Schedule, now_s: float) -> None:
        for row in schedule.rows:
            if row.sequence.started_time_s is None:
                row.sequence.started_time_s = now_s
                request = self._by_id[row.sequence.request_id]
                if not request.is_started:
                    request.is_started = True
                    self._started.append(request.request_id)

    def _postprocess(
        self, schedule: Schedule, built: BuiltStep, result: StepOutput, now_s: float
    ) -> list[RequestOutput]:
        for row in schedule.rows:
            row.sequence.num_computed_tokens += row.num_tokens
        for sequence, found in zip(built.prompted, result.prompt_logprobs, strict=True):
            sequence.note_prompt(found)
        outputs: list[RequestOutput] = []
        rows = zip(built.sampled, result.token_ids, result.failed, strict=True)
        for place, (sequence, token_id, failed) in enumerate(rows):
            if sequence.request_id not in self._by_id:
                continue  # another completion of its request has just failed or been refused
            if failed or (sequence.grammar is not None and sequence.grammar.error is not None):
                outputs += self._fail(sequence, place in result.barred, now_s)
                continue
            self._parts.batcher.confirm(sequence)
            sequence.append(token_id, now_s, result.logprobs.get(place))
            ending = self._parts.finisher.ending(sequence)
            if sequence.stream is not None:
                outputs.append(self._parts.finisher.partial(sequence, ending, now_s))
            if ending is not None:
                outputs += self._end(sequence, ending, now_s)
        return outputs

    def _refuse(self, refusals: ListLike[Refusal]) -> list[RequestOutput]:
        """End requests whose adapters turned out unusable; the batch has let go of the refused sequences."""
        outputs, now_s = [], time.monotonic()
        for sequence, error in refusals:
            outputs += self._settle(sequence, Ending("error"), now_s, error)
        for sequence, error in refusals:
            outputs += self._end_all(sequence.request_id, Ending("error"), now_s, error)
        return outputs

    def _fail(self, sequence: Sequence, is_barred: bool, now_s: float) -> list[RequestOutput]:
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
        self, sequence: Sequence, ending: Ending, now_s: float, error: EngineError | None = None
    ) -> list[RequestOutput]:
        for member in sequence.composition:
            sequence.adapter_use += self._adapters.take_uncharged(member.lora)
        self._parts.batcher.remove(sequence)
        self._let_go_of_adapters(sequence)
        return self._settle(sequence, ending, now_s, error)

    def _settle(
        self, sequence: Sequence, ending: Ending, now_s: float, error: EngineError | None
    ) -> list[RequestOutput]:
        """Close a sequence's accounts; return the output of its whole request, if it was the last of it."""
        self._accounts.close(sequence)
        output = self._parts.finisher.output(sequence, ending, now_s, error)
        whole = self._by_id[sequence.request_id].end(sequence, output)
        if whole is None:
            return []
        del self._by_id[sequence.request_id]
        return [whole]
