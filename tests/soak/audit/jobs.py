"""Judges jobs: lost, doubled or wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.soak.audit.evidence import TERMINAL, Evidence, JobRow, Record, Submission
from tests.soak.audit.verdict import Finding

COMPARED = ("output", "finish_reason", "prompt_tokens", "completion_tokens")


def judge_jobs(evidence: Evidence) -> Iterator[Finding]:
    """Find what is not as it was promised."""
    yield from _lost(evidence)
    yield from _doubled(evidence)
    yield from _wrong(evidence)
    yield from _wrongly_told(evidence)
    yield from _streams(evidence)


def missing_ids(evidence: Evidence) -> tuple[set[str], set[str]]:
    """Return the accepted jobs without a row: those that a flush of Redis took, and those that are lost."""
    known = {str(job.job_id) for job in evidence.jobs}
    missing = [receipt for receipt in evidence.receipts if receipt["job_id"] not in known]
    in_ledger = {receipt["job_id"] for receipt in missing if receipt["kind"] == "ledger"}
    gone = {receipt["job_id"] for receipt in missing}
    flushed = gone & evidence.flushed_ids - in_ledger
    return flushed, gone - flushed


def _lost(evidence: Evidence) -> Iterator[Finding]:
    numbers = {receipt["job_id"]: receipt["n"] for receipt in evidence.receipts}
    for job_id in sorted(missing_ids(evidence)[1]):
        yield Finding("lost", f"job {numbers[job_id]} ({job_id}) was accepted and has no row")
    for job in evidence.jobs:
        if job.state not in TERMINAL:
            yield Finding("lost", f"{_name(job)} never ended: it is {job.state} at attempt {job.attempt}")
    ended = {job.number: job for job in evidence.jobs if job.state in TERMINAL}
    for record in evidence.untold:
        if (waited := ended.get(record["n"])) is not None:
            yield Finding("lost", f"{_name(waited)} ended {waited.state}, and its client was never told")


def _doubled(evidence: Evidence) -> Iterator[Finding]:
    rows = Counter(job.number for job in evidence.jobs)
    for number, count in rows.items():
        if count > 1:
            yield Finding("doubled", f"job {number} has {count} rows")
    names = {job.job_id: _name(job) for job in evidence.jobs}
    answers = Counter(attempt.job_id for attempt in evidence.attempts if attempt.ended == "succeeded")
    for job_id, count in answers.items():
        if count > 1:
            yield Finding("doubled", f"{count} attempts of {names[job_id]} ended with an answer")
    told: dict[str, set[str]] = defaultdict(set)
    for record in evidence.told:
        if record["state"] in TERMINAL:
            told[record["job_id"]].add(record["state"])
    for name, states in told.items():
        if len(states) > 1:
            yield Finding(
                "doubled", f"clients were told that job {name} ended {' and '.join(sorted(states))}"
            )


def _wrong(evidence: Evidence) -> Iterator[Finding]:
    sources = {one["revision"]: one["source"] for one in evidence.adapters if one["event"] == "added"}
    first_receipts = {receipt["n"] for receipt in evidence.receipts if receipt["variant"] == 0}
    answered = {
        attempt.job_id: attempt.revision for attempt in evidence.attempts if attempt.ended == "succeeded"
    }
    for job in evidence.jobs:
        intent = evidence.intents.get(Submission(job.number or 0, job.variant or 0))
        if intent is None or job.number is None:
            yield Finding("wrong", f"{_name(job)} has a row and no intent")
            continue
        if job.variant == 1 and job.number in first_receipts and not evidence.flushed_ids:
            yield Finding("wrong", f"{_name(job)} has the payload of its second submission")
        if job.adapter != intent["adapter"] or job.tenant != intent["tenant"]:
            yield Finding(
                "wrong", f"{_name(job)} is {job.tenant}'s on {job.adapter}, and was asked otherwise"
            )
        elif job.state in TERMINAL and job.state not in intent["may_end"]:
            yield Finding("wrong", f"{_name(job)} ended {job.state} ({job.error_code})")
        elif job.state == "succeeded":
            yield from _answer(job, intent, evidence, sources)
            yield from _revision(job, intent, evidence, answered.get(job.job_id))


def _answer(job: JobRow, intent: Record, evidence: Evidence, sources: dict[str, str]) -> Iterator[Finding]:
    source = sources.get(job.revision, "an unknown revision") if job.revision else ""
    expected = evidence.expected[intent["request"]].get(source)
    if expected is None:
        yield Finding(
            "wrong", f"{_name(job)} was answered by {source or 'the base'}, not by {intent['adapter']}"
        )
        return
    for field in COMPARED:
        if (value := getattr(job, field)) != expected[field]:
            yield Finding("wrong", f"{_name(job)}: {field} is {value!r}, right is {expected[field]!r}")


def _revision(job: JobRow, intent: Record, evidence: Evidence, answered: str | None) -> Iterator[Finding]:
    """A job gets a revision that was its adapter's current one between its submission and its end."""
    if job.adapter is None:
        return
    if answered != job.revision:
        yield Finding("wrong", f"{_name(job)} is pinned to {job.revision} and was answered by {answered}")
    of_name = [one for one in evidence.adapters if one["name"] == job.adapter]
    added = [one for one in of_name if one["event"] == "added"]
    begun = [one["at"] for one in of_name if one["event"] == "adding"]
    ended_at = job.ended_at.timestamp() if job.ended_at else float("inf")
    replaced = [one["at"] for one in added[1:]] + [float("inf")]
    current = {
        one["revision"]
        for one, begins, ends in zip(added, begun, replaced, strict=False)
        if begins <= ended_at and ends >= intent["at"]
    }
    if job.revision not in current:
        yield Finding(
            "wrong", f"{_name(job)} was answered by an older revision of {job.adapter}: {job.revision}"
        )


def _wrongly_told(evidence: Evidence) -> Iterator[Finding]:
    by_id = {str(job.job_id): job for job in evidence.jobs}
    flushed, lost = missing_ids(evidence)
    for record in evidence.told:
        job = by_id.get(record["job_id"])
        if job is None or record["state"] == "unknown":
            # Under its key, a job that a flush took may have been submitted once more.
            is_flushed = job is not None and record["job_id"] in evidence.flushed_ids
            if not is_flushed and record["job_id"] not in flushed | lost:
                yield Finding("wrong", f"the client of job {record['n']} was told {record['state']!r}")
            continue
        ledger = {"state": job.state, "attempt": job.attempt, "output": job.output}
        ledger |= {"prompt_tokens": job.prompt_tokens, "completion_tokens": job.completion_tokens}
        for field, value in ledger.items():
            if record[field] != value:
                yield Finding(
                    "wrong", f"the client of {_name(job)} was told {field} {record[field]!r}, not {value!r}"
                )


def _streams(evidence: Evidence) -> Iterator[Finding]:
    outputs = {str(job.job_id): job for job in evidence.jobs}
    for record in evidence.streamed:
        job = outputs.get(record["job_id"])
        if job is None:
            continue
        text = ""
        for _, piece, is_restart in record["pieces"]:
            text = piece if is_restart else text + piece
        if job.state == "succeeded" and text != job.output:
            yield Finding("wrong", f"{_name(job)} streamed {text!r}, its output is {job.output!r}")
        attempts = [attempt for attempt, *_ in record["entries"]]
        late = {pair for pair in pairwise(attempts) if pair[1] < pair[0]}
        for before, after in sorted(late):
            yield Finding(
                "doubled", f"tokens of attempt {after} of {_name(job)} came after those of attempt {before}"
            )


def _name(job: JobRow) -> str:
    return f"job {job.number} ({job.job_id})"
