"""One producer, a process of its own: submits its share of the plan, and writes down what it does and hears.

Its journal says `intent` before a submission and `receipt` after it. Killed and started again, it goes on
after the last intent: what had a key is submitted once more, what had none stays `unsure`, and jobs with a
receipt are waited for by their id.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from lorayard import Client, JobHandle, LorayardError, QueueFull
from lorayard.contract.errors import IdempotencyConflict, UnknownAdapter, UnknownJob, UnknownPool
from lorayard.contract.keys import tokens_key
from lorayard.contract.messages import TokenEntry
from tests.soak.journal import Journal, read

MAX_OPEN = 200
CHUNK = 8
PAUSE_S = 0.05
RETRY_S = 0.5
CANCEL_AFTER_S = 0.15
UNTOLD = 3
"""Exit status of a producer some of whose jobs never ended."""
NOTHING_SENT = (QueueFull, UnknownPool, UnknownAdapter)
"""Of the jobs that such an error does not name as accepted, none is in Redis."""

Told = dict[str, Any]


@dataclass(slots=True)
class Submission:
    """One payload of one planned job; `variant` 1 is the other payload under the same key."""

    job: dict[str, Any]
    variant: int
    fields: dict[str, Any]
    confirm: str
    repeats: int = 0
    """So many times it is submitted again under its key."""

    @property
    def name(self) -> dict[str, Any]:
        """What every record of it bears."""
        return {"n": self.job["number"], "variant": self.variant}


@dataclass(slots=True)
class OpenJob:
    """A submitted job that has not been told the end of."""

    submission: Submission
    handle: JobHandle
    cancel_at: float | None = None
    reader: threading.Thread | None = field(default=None, repr=False)


class Producer:
    """Mutable: what is left to submit, and what is waited for."""

    def __init__(
        self, task: dict[str, Any], client: Client, journal: Journal, past: Iterable[dict[str, Any]]
    ) -> None:
        self._task = task
        self._client = client
        self._journal = journal
        self._open: list[OpenJob] = []
        self._rng = random.Random(os.getpid())
        self._began_at = time.monotonic()
        self._num_submitted = 0
        self._left = deque(self._recover(list(past)))
        self._redis = Redis.from_url(task["redis_url"])

    def run(self) -> int:
        """Submit all, wait for all; returns `UNTOLD` if some never ended."""
        quiet_since, was_open = time.monotonic(), -1
        while self._left or self._open:
            if self._left and len(self._open) < MAX_OPEN and self._is_due():
                self._submit_chunk()
            else:
                time.sleep(PAUSE_S)
            self._look_after()
            if self._left or len(self._open) != was_open:
                quiet_since, was_open = time.monotonic(), len(self._open)
            elif time.monotonic() - quiet_since > self._task["patience_s"]:
                self._journal.append(*({"event": "untold", **one.submission.name} for one in self._open))
                return UNTOLD
        return 0

    def _is_due(self) -> bool:
        """Whether the pace allows the next job, and the faults that are due before it have begun."""
        allowed = Path(self._task["allowance"])
        if self._left[0].job["number"] >= int(allowed.read_text()):
            return False
        per_s = self._task["jobs_per_s"]
        return per_s is None or self._num_submitted < (time.monotonic() - self._began_at) * per_s

    def _recover(self, past: Sequence[dict[str, Any]]) -> list[Submission]:
        """Take up what an earlier process of this producer left, and return what is still to be submitted."""
        seen: dict[tuple[int, int], set[str]] = {}
        ids: dict[tuple[int, int], str] = {}
        for record in past:
            if "n" in record:
                key = (record["n"], record["variant"])
                seen.setdefault(key, set()).add(record["event"])
                ids[key] = record.get("job_id", ids.get(key, ""))
        left = []
        for job in self._task["jobs"]:
            for submission in self._submissions(job):
                events = seen.get((job["number"], submission.variant), set())
                if events & {"told", "conflict", "unsure"}:
                    continue
                if "receipt" in events:
                    handle = self._client.job(ids[job["number"], submission.variant])
                    self._open.append(OpenJob(submission, handle))
                elif "intent" in events and not job["has_key"]:
                    self._journal.append(
                        {"event": "unsure", **submission.name, "error": "the producer was killed"}
                    )
                else:
                    left.append(submission)
        return left

    def _submissions(self, job: dict[str, Any]) -> list[Submission]:
        first = Submission(job, 0, self._fields(job, job["request"], 0), job["confirm"])
        if job["kind"] == "same_key":
            first.repeats = 2
        if job["kind"] != "other_payload":
            return [first]
        return [first, Submission(job, 1, self._fields(job, job["other"], 1), "ledger")]

    def _fields(self, job: dict[str, Any], request: str, variant: int) -> dict[str, Any]:
        run = self._task["run"]
        fields = {
            **self._task["requests"][request],
            "tenant": f"{run}-{job['tenant']}",
            "priority": job["priority"],
            "metadata": {"run": run, "n": job["number"], "variant": variant},
            "stream": job["kind"] == "stream",
        }
        if job["has_key"]:
            fields["idempotency_key"] = f"{run}-{job['number']}"
        if job["deadline_s"] is not None:
            fields["deadline_s"] = job["deadline_s"]
        if job["receiver"] is not None:
            fields["callback_url"] = f"{self._task['receivers'][job['receiver']]}/{job['number']}"
        return fields

    def _submit_chunk(self) -> None:
        first = self._left[0]
        chunk: list[Submission] = []
        while self._left and len(chunk) < CHUNK and self._is_alike(first, self._left[0]):
            chunk.append(self._left.popleft())
            if first.repeats or first.variant:
                break
        self._num_submitted += len(chunk)
        self._journal.append(*(self._intent(one) for one in chunk))
        try:
            handles = self._client.submit_many([one.fields for one in chunk], confirm=_confirm(first))
            self._accepted(chunk, handles)
        except IdempotencyConflict as error:
            self._journal.append({"event": "conflict", **first.name, "error": str(error)})
        except LorayardError as error:
            self._refused(chunk, error)

    def _is_alike(self, first: Submission, other: Submission) -> bool:
        return (other.confirm, other.repeats, other.variant) == (first.confirm, first.repeats, first.variant)

    def _intent(self, one: Submission) -> dict[str, Any]:
        job = one.job
        return {
            "event": "intent",
            **one.name,
            "kind": job["kind"],
            "request": job["other"] if one.variant else job["request"],
            "adapter": one.fields.get("adapter"),
            "tenant": one.fields["tenant"],
            "may_end": job["may_end"],
            "has_key": job["has_key"],
            "callback": job["receiver"],
        }

    def _accepted(self, chunk: Sequence[Submission], handles: Sequence[JobHandle]) -> None:
        self._journal.append(
            *(
                {"event": "receipt", **one.name, "job_id": str(handle.id), "kind": one.confirm}
                for one, handle in zip(chunk, handles, strict=False)
            )
        )
        for one, handle in zip(chunk, handles, strict=False):
            opened = OpenJob(one, handle)
            if one.job["kind"] == "cancel":
                opened.cancel_at = time.monotonic() + self._rng.random() * CANCEL_AFTER_S
            if one.job["kind"] == "stream":
                opened.reader = threading.Thread(target=self._read_stream, args=(opened,), daemon=True)
                opened.reader.start()
            self._open.append(opened)
            if one.repeats:
                self._left.append(Submission(one.job, one.variant, one.fields, one.confirm, one.repeats - 1))

    def _refused(self, chunk: Sequence[Submission], error: LorayardError) -> None:
        """Submit again what is certainly not in, or has a key; of the rest, nobody knows."""
        accepted = getattr(error, "accepted", ())
        self._accepted(chunk[: len(accepted)], accepted)
        self._journal.append({"event": "refused", "error": f"{type(error).__name__}: {error}"})
        for one in reversed(chunk[len(accepted) :]):
            if one.job["has_key"] or isinstance(error, NOTHING_SENT):
                self._left.appendleft(one)
            else:
                self._journal.append({"event": "unsure", **one.name, "error": str(error)})
        time.sleep(RETRY_S)

    def _look_after(self) -> None:
        """Write down the ends that have come in, and cancel what is to be cancelled."""
        now = time.monotonic()
        ended, told = [], []
        for one in self._open:
            if one.cancel_at is not None and now >= one.cancel_at:
                one.cancel_at = None
                self._try(one.handle.cancel)
            if one.reader is not None and one.reader.is_alive():
                continue
            if self._try(one.handle.done):
                ended.append(one)
                told.append(self._told(one))
        if told:
            self._journal.append(*told)
            self._open = [one for one in self._open if one not in ended]

    def _try(self, ask: Callable[[], object]) -> object:
        try:
            return ask()
        except LorayardError:
            return None  # asked again at the next look; a cancel may be lost as any other message

    def _told(self, one: OpenJob) -> Told:
        try:
            result = one.handle.result(0, raise_on_failure=False)
        except IdempotencyConflict as error:
            return {"event": "conflict", **one.submission.name, "error": str(error)}
        except UnknownJob:
            return {"event": "told", **one.submission.name, "job_id": str(one.handle.id), "state": "unknown"}
        return {
            "event": "told",
            **one.submission.name,
            "job_id": str(result.job_id),
            "state": result.state.value,
            "attempt": result.attempt,
            "output": result.output,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
        }

    def _read_stream(self, one: OpenJob) -> None:
        """Read a job's stream as its user would, and then what is in Redis of it."""
        pieces = []
        try:
            for event in one.handle.stream(self._task["patience_s"]):
                pieces.append([event.attempt, event.text, event.is_restart])
        except LorayardError as error:
            self._journal.append({"event": "stream_broke", **one.submission.name, "error": str(error)})
            return
        self._journal.append(
            {
                "event": "streamed",
                **one.submission.name,
                "job_id": str(one.handle.id),
                "pieces": pieces,
                "entries": self._raw_entries(one.handle.id),
            }
        )

    def _raw_entries(self, job_id: UUID) -> list[Any]:
        try:
            entries: Any = self._redis.xrange(tokens_key(job_id))
        except RedisError:
            return []
        read_entries = [TokenEntry.from_entry(fields) for _, fields in entries]
        return [[entry.attempt, entry.char_offset, entry.text, entry.ended] for entry in read_entries]


def _confirm(one: Submission) -> Any:
    return one.confirm


def main(task_path: Path, journal_path: Path) -> int:
    """Produce what the task says; returns the exit status."""
    task = json.loads(task_path.read_text())
    past = list(read([journal_path]))
    journal = Journal(journal_path)
    with Client(task["redis_url"]) as client:
        return Producer(task, client, journal, past).run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
