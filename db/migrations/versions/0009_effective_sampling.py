"""What a job's tokens were chosen by, beside its output; and waiting jobs keep what they were admitted with.

Stops nobody: processes of the release before name no such column. They leave out what a job did not set, as
those of this release do, which from now on may have a default of the model's. So what was admitted before and
has not ended is told to have set the values that held then.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# In the order in which live transactions lock them, with what 0010 changes; on the way down those of before lock
# all of these.
_LOCK = "LOCK TABLE adapter_revisions, jobs, job_inputs, job_outputs IN ACCESS EXCLUSIVE MODE"
_LOCK_ALL = (
    "LOCK TABLE worker_leases, workers, adapter_revisions, intake_rejects, jobs, job_inputs, job_outputs "
    "IN ACCESS EXCLUSIVE MODE"
)

_NEUTRAL = """(VALUES ('top_p', '1.0'), ('top_k', '0'), ('min_p', '0.0'), ('repetition_penalty', '1.0'))
    AS neutral(key, value)"""

# Texts are joined, as in 0007: numbers and the order of keys stay as they were given.
_SPELL_OUT = f"""
    UPDATE job_inputs i SET request = CAST(
        regexp_replace(CAST(i.request AS text), '\\s*\\}}\\s*$', '') || coalesce((
            SELECT string_agg(',"' || key || '":' || value, '') FROM {_NEUTRAL} WHERE i.request->key IS NULL
        ), '') || '}}' AS json)
    FROM jobs j WHERE j.job_id = i.job_id AND j.ended_at IS NULL
"""

_LEAVE_OUT = f"""
    UPDATE job_inputs i SET request = (
        SELECT CAST('{{' || string_agg(to_json(key) || ':' || given, ',' ORDER BY place) || '}}' AS json)
        FROM json_each(i.request) WITH ORDINALITY AS one(key, given, place) LEFT JOIN {_NEUTRAL} USING (key)
        WHERE CASE WHEN value IS NULL THEN true
            ELSE CAST(value AS float8) <> CAST(CAST(given AS text) AS float8) END
    )
    FROM jobs j WHERE j.job_id = i.job_id AND j.ended_at IS NULL
"""

_MEASURE = """
    UPDATE jobs j SET request_bytes = octet_length(CAST(i.request AS text))
    FROM job_inputs i WHERE i.job_id = j.job_id AND j.ended_at IS NULL
"""


def upgrade() -> None:
    """Add the column, and spell out what waiting jobs left out."""
    op.execute(_LOCK)
    op.add_column("job_outputs", sa.Column("sampling", sa.JSON(), nullable=True))
    op.execute(_SPELL_OUT)
    op.execute(_MEASURE)


def downgrade() -> None:
    """Drop the column; what is spelled out means the same before, left out."""
    op.execute(_LOCK_ALL)
    op.execute(_LEAVE_OUT)
    op.execute(_MEASURE)
    op.drop_column("job_outputs", "sampling")
