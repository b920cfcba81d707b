"""The engine's loop: schedule, run, postprocess; every request ends in exactly one output."""

from __future__ import annotations

import time
from collections.abc import Sequence as ListLike
from itertools import count
from typing import Any

from workers.engine.accounts import Accounts, EngineStats, Room
from workers.engine.assembly import EngineInfo, assemble
from workers.engine.batching import Refusal, Schedule
from workers.engine.config import EngineConfig
from workers.engine.errors import (
    ConfigError,
    EngineError,
    InvalidParams,
    NonFiniteLogits,
    RequestError,
)
from workers.engine.finishing import Ending, no_token_allowed, non_finite_logits
from workers.engine.lora.composition import unscaled
from workers.engine.lora.manager import LoRAManager
from workers.engine.lora.request import AnyLoRA, LoRARequest
from workers.engine.lora.residency import ResidencyChange
from workers.engine.outputs import RequestOutput
from workers.engine.requests import Prompt
from workers.engine.sampling_params import SamplingParams
from workers.engine.sequence import Sequence
from workers.engine.step_input import StepOutput

_IDLE_POLL_S = 0.001
"""Pause of a step that finds only requests whose adapters are still loading."""


class LLMEngine:
    """One base model and the adapters upon it, serving many requests at once.

    Not thread-safe: one thread calls it. Requests that cannot be served raise at `add_request`; what goes
    wrong later ends as an output with finish_reason "error". Nothing falls back to the base model.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._parts = assemble(config)
        self.info: EngineInfo = self._parts.info
        self._by_id: dict[str, Sequence] = {}
        self._started: list[str] = []
        self._undelivered: list[RequestOutput] = []
        self._ids = count()
        self._accounts = Accounts()

    def generate(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | ListLike[SamplingParams] | None = None,
        lora_request: AnyLoRA | ListLike[AnyLoRA | None] | None = None,
    ) -> list[RequestOutput]:
        """Serve these prompts to their end and return their outputs in order.

        A prompt is text, token ids or chat messages; `params` and `lora_request` are one for all or one each.
        Several adapters upon one prompt are a `LoRAMix`; a list is always one entry per prompt.
        """
        all_prompts = _as_prompts(prompts)
        all_params = _one_each("params", params or SamplingParams(), len(all_prompts))
        all_loras = _one_each("lora_request", lora_request, len(all_prompts))
        asked = zip(all_prompts, all_params, all_loras, strict=True)
        # All are checked before any runs, so that a bad one leaves nothing behind.
        sequences = [self._new_sequence(f"generate-{next(self._ids)}", *request) for request in asked]
        for sequence in sequences:
            self._enqueue(sequence)
        return self._run_to_end([sequence.request_id for sequence in sequences])

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
        self._enqueue(self._new_sequence(request_id, prompt, params, lora_request, cache_salt))

    def step(self) -> list[RequestOutput]:
        """Run one step and return the outputs of the requests that ended with it."""
        outputs, self._undelivered = self._undelivered, []
        self._started = []
        began_s = time.monotonic()
        schedule = self._parts.batcher.schedule()
        outputs += [self._refuse(refusal) for refusal in schedule.refusals]
        if schedule.rows:
            self._mark_started(schedule, began_s)
            built = self._parts.builder.build(schedule)
            result = self._parts.executor.execute(built.step)
            now_s = time.monotonic()
            self._accounts.charge(schedule.rows, (now_s - began_s) * 1000.0)
            outputs += self._postprocess(schedule, built.sampled, result, now_s)
        elif self._parts.batcher.waiting and not outputs:
            time.sleep(_IDLE_POLL_S)
        return outputs

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now; returns its output with what it has generated, None if it is not held."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return None
        return self._end(sequence, Ending("abort"), time.monotonic())

    def has_unfinished_requests(self) -> bool:
        """Whether `step` still has something to do or to deliver."""
        return bool(self._by_id or self._undelivered)

    @property
    def started(self) -> tuple[str, ...]:
        """The requests that joined the running batch for the first time with the latest step."""
        return tuple(self._started)

    def drain_residency_changes(self) -> list[ResidencyChange]:
        """Return what became of adapters since the last call, in order."""
        adapters = self._parts.adapters
        return [] if adapters is None else list(adapters.drain_changes())

    def prefetch_lora(self, request: LoRARequest) -> None:
        """Start loading an adapter into the host cache."""
        self._adapters.prefetch(unscaled(request))

    def add_lora(self, request: LoRARequest) -> bool:
        """Load an adapter and give it a slot; False if it has one already."""
        return self._adapters.add(unscaled(request))

    def remove_lora(self, lora_int_id: int) -> bool:
        """Drop an adapter; False if it is not there."""
        return self._adapters.remove(lora_int_id)

    def pin_lora(self, lora_int_id: int) -> bool:
        """Keep an adapter from being evicted; ValueError if it is not there."""
        return self._adapters.pin(lora_int_id)

    def unpin_lora(self, lora_int_id: int) -> bool:
        """Let a pinned adapter be evicted again."""
        return self._adapters.unpin(lora_int_id)

    def list_loras(self) -> set[int]:
        """Return the ids of the adapters held."""
        return set() if self._parts.adapters is None else self._parts.adapters.list()

    @property
    def residency_epoch(self) -> int:
        """Number of the latest residency change, 0 before the first."""
        return 0 if self._parts.adapters is None else self._parts.adapters.epoch

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
        self._parts.allocator.check(sequence.block_table for sequence in self._parts.batcher.sequences())

    def close(self) -> None:
        """Stop background work; the engine is not used afterwards."""
        if self._parts.adapters is not None:
            self._parts.adapters.close()

    @property
    def _adapters(self) -> LoRAManager:
        if self._parts.adapters is None:
            raise ConfigError("enable_lora is False, so there are no adapters; set it to True")
        return self._parts.adapters

    def _new_sequence(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        lora: AnyLoRA | None,
        cache_salt: str | None = None,
    ) -> Sequence:
        checker, now_s = self._parts.checker, time.monotonic()
        sequence = checker.sequence(
            request_id, prompt, params, lora, arrival_time_s=now_s, cache_salt=cache_salt
        )
        for member in sequence.composition:
            self._adapters.prefetch(member.lora)
        return sequence

    def _enqueue(self, sequence: Sequence) -> None:
        self._by_id[sequence.request_id] = sequence
        self._parts.batcher.add(sequence)

    def _run_to_end(self, request_ids: list[str]) -> list[RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        others: list[RequestOutput] = []
        wanted = set(request_ids)
        while len(outputs) < len(wanted):
            for output in self.step():
                if output.request_id in wanted:
                    outputs[output.request_id] = output
                else:
                    others.append(output)
        self._undelivered += others
        return [outputs[request_id] for request_id in request_ids]

    def _mark_started(self, schedule: Schedule, now_s: float) -> None:
        for row in schedule.rows:
            if row.sequence.started_time_s is None:
                row.sequence.started_time_s = now_s
                self._started.append(row.sequence.request_id)

    def _postprocess(
        self, schedule: Schedule, sampled: list[Sequence], result: StepOutput, now_s: float
    ) -> list[RequestOutput]:
        for row in schedule.rows:
            row.sequence.num_computed_tokens += row.num_tokens
        outputs = []
        rows = zip(sampled, result.token_ids, result.failed, strict=True)
        for place, (sequence, token_id, failed) in enumerate(rows):
            if failed:
                outputs.append(self._fail(sequence, place in result.barred, now_s))
                continue
            self._parts.batcher.confirm(sequence)
            if (ending := self._append(sequence, token_id, now_s)) is not None:
                outputs.append(self._end(sequence, ending, now_s))
        return outputs

    def _append(self, sequence: Sequence, token_id: int, now_s: float) -> Ending | None:
        sequence.append(token_id)
        if sequence.first_token_time_s is None:
            sequence.first_token_time_s = now_s
        return self._parts.finisher.ending(sequence)

    def _refuse(self, refusal: Refusal) -> RequestOutput:
        sequence, error = refusal
        del self._by_id[sequence.request_id]
        return self._parts.finisher.output(sequence, Ending("error"), time.monotonic(), error)

    def _fail(self, sequence: Sequence, is_barred: bool, now_s: float) -> RequestOutput:
        if not is_barred:
            self._parts.batcher.disown(sequence)
        error = no_token_allowed(sequence) if is_barred else non_finite_logits(sequence)
        return self._end(sequence, Ending("error"), now_s, error)

    def _end(
        self, sequence: Sequence, ending: Ending, now_s: float, error: EngineError | None = None
    ) -> RequestOutput:
        for member in sequence.composition:
            if isinstance(error, NonFiniteLogits):
                self._adapters.count_non_finite(member.lora)
            sequence.adapter_use += self._adapters.take_uncharged(member.lora)
        self._parts.batcher.remove(sequence)
        del self._by_id[sequence.request_id]
        if not self._by_id:
            self._parts.allocator.check_idle()
        self._accounts.close(sequence)
        return self._parts.finisher.output(sequence, ending, now_s, error)


def _as_prompts(prompts: Prompt | ListLike[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], (int, dict)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _one_each(name: str, given: Any, num_prompts: int) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        return [given] * num_prompts
    if len(given) != num_prompts:
        raise InvalidParams(f"{len(given)} {name} for {num_prompts} prompts; give one for all, or one each")
    return list(given)
