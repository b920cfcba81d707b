"""Which jobs a revoke means."""

from __future__ import annotations

from uuid import uuid4

from scheduler.revokes import BatchBook


def test_a_micro_batch_means_its_jobs_and_any_other_id_itself() -> None:
    batch_id, first, second, stranger = uuid4(), uuid4(), uuid4(), uuid4()
    book = BatchBook()

    book.note(batch_id, [first, second])

    assert book.jobs_of([batch_id, stranger]) == [first, second, stranger]
