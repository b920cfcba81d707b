"""The command line: `python -m tests.soak --jobs N --kills N --minutes M --seed S [--state FOLDER]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import uuid
from pathlib import Path

from tests.soak.run import SoakOptions, soak
from tests.soak.steady import table


def main() -> int:
    """Run one soak; the last line says what came of it, the exit status is 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=5.0, help="spread the jobs over so long; 0: no pace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--producers", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=300.0, help="seconds without an end before a job is lost"
    )
    parser.add_argument("--state", type=Path, help="where all files are kept; a temporary folder by default")
    parser.add_argument("--steady", type=float, metavar="MINUTES", help="no kills; nothing may grow")
    parser.add_argument("--warm-up", type=float, default=15.0, help="minutes before the steady ones")
    given = parser.parse_args()
    is_steady_run = given.steady is not None
    folder = given.state or Path(tempfile.mkdtemp(prefix="lorayard-soak-"))
    verdict = soak(
        SoakOptions(
            folder=folder.resolve(),
            jobs=given.jobs,
            kills=0 if is_steady_run else given.kills,
            minutes=given.warm_up + given.steady if is_steady_run else given.minutes,
            fresh=is_steady_run,
            seed=given.seed,
            producers=given.producers,
            patience_s=given.patience,
            run=f"soak{uuid.uuid4().hex[:8]}",
        ),
        lambda text: print(text, flush=True),
    )
    is_steady = True
    if is_steady_run:
        lines, is_steady = table(folder, given.warm_up * 60)
        print("\n".join(lines))
    print(verdict.report())
    return 0 if verdict.is_clean and verdict.is_prompt and is_steady else 1


if __name__ == "__main__":
    sys.exit(main())
