"""Owns the engine's child process: jobs go in as requests, outcomes come out to the committer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol
from uuid import UUID

import structlog

from db.records import JobAttempt
from lorayard.contract.messages import BatchJob, Residency
from lorayard.contract.reading import UnreadableRequest
from lorayard.process.service_thread import OnBroken, ServiceThread
from workers.arrivals import Arrivals, AskAborts
from workers.attempts import ActiveAttempt, AttemptTable, Phase, StopReason
from workers.engine.core.errors import EngineDied, RequestError
from workers.engine.core.outputs import RequestOutput
from workers.engine.serving.process import (
    AbortRequest,
    AddRequest,
    DropAdapter,
    EngineEvents,
    EngineProcess,
    PrefetchAdapter,
    Started,
    TokenDelta,
)
from workers.engine_status import Capacity, EngineStatus
from workers.engine_watch import EngineWatch, ProgressLimit
from workers.feeder import Command, Feeder
from workers.outcomes import (
    Outcome,
    outcome_broken,
    outcome_of,
    outcome_refused,
    outcome_unrun,
    storable,
)
from workers.requests import AdapterIds, add_request, parse_request_id, request_id
from workers.token_writer import Piece

logger = structlog.get_logger(__name__)


class OutcomeSink(Protocol):
    """Where ended attempts go."""

    @property
    def has_room(self) -> bool:
        """Whether more results can be kept."""
        ...

    def put(self, *outcomes: Outcome) -> None:
        """Take ends that came together; never blocks."""
        ...


class JobWatcher(Protocol):
    """Who hears of jobs on their way (Flower)."""

    def received(self, job: BatchJob) -> None:
        """A job has come in."""
        ...

    def started(self, job: BatchJob) -> None:
        """The engine has begun a job."""
        ...

    def residency_changed(self) -> None:
        """The engine has other adapters at hand than before."""
        ...


class EngineHost:
    """The batch in flight; micro-batches join it, and it is never a barrier."""

    def __init__(
        self,
        engine: EngineProcess,
        attempts: AttemptTable,
        sink: OutcomeSink,
        watcher: JobWatcher,
        adapters: AdapterIds,
        status: EngineStatus,
        *,
        is_revoked: Callable[[str], bool],
        on_died: Callable[[EngineDied], None],
        on_broken: OnBroken,
        on_text: Callable[[Piece], None],
        limit: ProgressLimit,
        ask_aborts: AskAborts,
        caches_by_tenant: bool = False,
    ) -> None:
        """`limit` says how long the engine may take for a step."""
        self._engine = engine
        self._attempts = attempts
        self._sink = sink
        self._watcher = watcher
        self._adapters = adapters
        self._status = status
        self._is_revoked = is_revoked
        self._on_died = on_died
        self._on_text = on_text
        self._caches_by_tenant = caches_by_tenant
        self._feeder = Feeder(
            self._send, lambda: sink.has_room, on_unsent=self._end_unsent, on_broken=on_broken
        )
        self._watch = EngineWatch(engine, limit, self, on_hung=self._lose, on_broken=on_broken)
        self._arrivals = Arrivals(
            ask_aborts, self._on_checked, on_all_checked=self._feed, on_broken=on_broken
        )
        self._checked: list[tuple[ActiveAttempt, AddRequest]] = []
        """May run, and go to the engine together."""
        self._refusing = False
        self._pump = ServiceThread("engine-pump", self._pump_once, on_broken=on_broken, wake=engine.interrupt)

    def start(self) -> None:
        """Begin to check what comes, to feed the engine, to hear from it and to watch it."""
        self._arrivals.start()
        self._feeder.start()
        self._pump.start()
        self._watch.start()

    def close(self) -> None:
        """Stop all threads, then end the engine's process."""
        self._watch.close()
        self._arrivals.close()
        self._feeder.close()
        self._pump.close()
        self._engine.stop()

    def refuse(self) -> None:
        """From now on give every arriving job straight back (the worker is draining)."""
        self._refusing = True

    def join(self, task_id: str, jobs: Iterable[BatchJob]) -> int:
        """Let the jobs of a micro-batch join the batch in flight; returns how many were new here.

        They run once the ledger has said that they are leased to this worker; else they are dropped.
        """
        taken = self._attempts.take(task_id, jobs, time.monotonic())
        self._watch.rouse()
        if self._refusing:
            for held in taken:
                self._end(held, outcome_unrun)
        else:
            self._arrivals.add(taken)
        return len(taken)

    def reject(self, task_id: str, key: JobAttempt, error: UnreadableRequest) -> None:
        """End a job of a micro-batch that cannot be read, and so not be run."""
        job = BatchJob.model_construct(
            job_id=key.job_id,
            attempt=key.attempt,
            tenant="",
            adapter=None,
            revision=None,
            request={},
            queue_ms=0.0,
            reply_to=None,
            has_callback=False,
        )
        for held in self._attempts.take(task_id, [job], time.monotonic()):
            self._end(held, lambda ended, now: outcome_refused(ended, error, now))

    def is_open(self, task_id: str) -> bool:
        """Whether jobs of this micro-batch are still in hand."""
        return self._attempts.is_open(task_id)

    def cancel(self, job_ids: Collection[UUID]) -> None:
        """Cancel the given jobs, wherever they are on this worker."""
        for held in self._attempts.live(job_ids=job_ids):
            self.stop(held, StopReason.CANCELLED)

    def cancel_task(self, task_id: str) -> None:
        """Cancel every job that came with one micro-batch."""
        for held in self._attempts.live(task_id=task_id):
            self.stop(held, StopReason.CANCELLED)

    def release_waiting(self, job_ids: Collection[UUID] | None = None) -> None:
        """Give back the jobs that have not started: some of them, or all."""
        for held in self._attempts.live(job_ids=job_ids):
            if held.phase is Phase.WAITING:
                self.stop(held, StopReason.RELEASED)

    def release_all(self) -> None:
        """Give back everything, started or not."""
        for held in self._attempts.live():
            self.stop(held, StopReason.RELEASED)

    def fence(self, keys: Iterable[JobAttempt]) -> None:
        """Abort attempts whose lease is over."""
        for key in keys:
            if (held := self._attempts.get(key)) is not None:
                self.stop(held, StopReason.FENCED)

    def prefetch(self, revisions: Iterable[str]) -> None:
        """Begin to load adapters that are about to be wanted."""
        for revision in revisions:
            self._feeder.command(PrefetchAdapter(self._adapters.request(revision)))

    def drop(self, revisions: Iterable[str]) -> None:
        """Forget adapters that nobody will want soon."""
        for revision in revisions:
            self._feeder.command(DropAdapter(self._adapters.request(revision)))

    def stop(self, held: ActiveAttempt, reason: StopReason) -> None:
        """Stop one attempt; its end comes through the engine unless it never got there."""
        if self._attempts.stop(held.key, reason) is not None:
            self._call_back(held)

    def _call_back(self, held: ActiveAttempt) -> None:
        if self._arrivals.withdraw(held.key) or self._feeder.withdraw(held.key):
            self._end(held, outcome_unrun)
        else:
            self._feeder.command(AbortRequest(request_id(held.key)))

    def _on_checked(self, held: ActiveAttempt, refusal: StopReason | None) -> None:
        if refusal is not None:
            self._attempts.stop(held.key, refusal)
            self._end(held, outcome_unrun)
            return
        try:
            self._watcher.received(held.job)
            request = add_request(held.job, self._adapters, caches_by_tenant=self._caches_by_tenant)
            self._checked.append((held, request))
        except (RequestError, UnreadableRequest) as error:
            refused = error
            self._end(held, lambda ended, now: outcome_refused(ended, refused, now))
        except Exception as error:
            # One that stayed here unfed would be held, and waited for, forever.
            logger.exception("engine_host.job_refused", job_id=str(held.job.job_id))
            reason = error
            self._end(held, lambda ended, now: outcome_broken(ended, reason, now))

    def _feed(self) -> None:
        checked, self._checked = self._checked, []
        self._feeder.add({held.key: request for held, request in checked})
        for held, _ in checked:
            if held.stop_reason is not None:
                # It was stopped before it was added: that abort went ahead of the request.
                self._call_back(held)

    def _end(self, held: ActiveAttempt, judge: Callable[[ActiveAttempt, float], Outcome]) -> None:
        if self._attempts.end(held.key) is not None:
            self._sink.put(judge(held, time.monotonic()))

    def _send(self, *commands: AddRequest | Command) -> None:
        self._engine.send(*commands)
        self._watch.rouse()

    def _end_unsent(self, request: AddRequest, error: Exception) -> None:
        held = self._attempts.get(parse_request_id(request.request_id))
        if held is not None:
            self._end(held, lambda ended, now: outcome_broken(ended, error, now))

    def _pump_once(self) -> None:
        try:
            events = self._engine.receive(None)
        except EngineDied as error:
            if not self._pump.stopping.is_set():
                self._pump.stop()
                self._lose(error)
            return
        if events is not None:
            self._digest(events)

    def _lose(self, error: EngineDied) -> None:
        logger.critical("engine.died", exitcode=error.exitcode, held=len(self._attempts), error=str(error))
        self._on_died(error)

    def in_step(self) -> list[JobAttempt]:
        """Name the attempts that the engine was computing when it died; all that run if it could not say."""
        told = self._engine.progress().request_ids
        if told is None:
            return [held.key for held in self._attempts.live() if held.phase is Phase.RUNNING]
        live = {held.key for held in self._attempts.live()}
        return [key for key in map(parse_request_id, told) if key in live]

    def _digest(self, events: EngineEvents) -> None:
        now = time.monotonic()
        self._pump.each(events.started, lambda started: self._start(started.request_id, now), _ids)
        self._pump.each(events.deltas, self._stream, _ids)
        ended: list[Outcome] = []
        try:
            self._pump.each(events.finished, lambda output: ended.extend(self._finish(output, now)), _ids)
        finally:
            # Together, so that one commit takes them; and whatever happens, for they have left the table.
            if ended:
                self._sink.put(*ended)
        self._status.update(
            Capacity(events.free_seqs, events.free_kv_blocks),
            events.epoch,
            [Residency(revision=change.revision, tier=change.tier) for change in events.residency],
        )
        if events.residency:
            self._watcher.residency_changed()

    def _start(self, name: str, now: float) -> None:
        held = self._attempts.start(parse_request_id(name), now)
        if held is not None:
            self._watcher.started(held.job)

    def _finish(self, output: RequestOutput, now: float) -> list[Outcome]:
        """End an attempt; returns its outcome, and nothing for one that is not held."""
        held = self._attempts.end(parse_request_id(output.request_id))
        if held is None:
            return []
        try:
            return [outcome_of(held, output, now)]
        except Exception as error:
            logger.exception("engine_host.output_refused", request_id=output.request_id)
            return [outcome_broken(held, error, now)]

    def _stream(self, delta: TokenDelta) -> None:
        held = self._attempts.get(parse_request_id(delta.request_id))
        if held is None or held.stop_reason is not None:
            return
        if delta.text:
            text = storable(delta.text)  # as the output will be
            self._on_text(Piece(held.key, held.num_streamed_tokens, held.num_streamed_chars, text))
        held.num_streamed_tokens += delta.num_tokens
        held.num_streamed_chars += len(delta.text)

    @property
    def are_held(self) -> bool:
        """Whether any attempt is in hand."""
        return len(self._attempts) > 0

    def stop_overdue(self, now: float) -> None:
        """Stop what has missed its deadline or was revoked in Flower."""
        for held in self._attempts.overdue(now):
            self.stop(held, StopReason.EXPIRED)
        for held in self._attempts.live():
            if self._is_revoked(str(held.job.job_id)) or self._is_revoked(held.task_id):
                self.stop(held, StopReason.CANCELLED)

    def end_unanswered(self) -> None:
        """End what was cancelled or has expired although the engine does not say so."""
        for held in self._attempts.live():
            if held.stop_reason in (StopReason.CANCELLED, StopReason.EXPIRED):
                self._end(held, outcome_unrun)


def _ids(told: Started | TokenDelta | RequestOutput) -> dict[str, object]:
    return {"request_id": told.request_id}
