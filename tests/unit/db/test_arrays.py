"""Array literals say what psycopg's lists say."""

from __future__ import annotations

from uuid import UUID

from db.arrays import array_literal


def test_every_kind_of_value_is_written_as_postgres_reads_it() -> None:
    job_id = UUID("01a21bd3-0cc3-7719-9ecd-36f9be96d4ff")

    assert array_literal([]) == "{}"
    assert array_literal([job_id, None]) == "{01a21bd30cc377199ecd36f9be96d4ff,NULL}"
    assert array_literal([1, 0.5, True, float("inf")]) == "{1,0.5,True,inf}"
    assert array_literal(["", "NULL", 'a "b" \\ {c,d}']) == r"""{"","NULL","a \"b\" \\ {c,d}"}"""
