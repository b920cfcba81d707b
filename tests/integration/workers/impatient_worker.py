"""A worker that gives its engine few seconds for a step; run by tests as a script.

Its only argument says how many.
"""

from __future__ import annotations

import sys
from functools import partial

from workers import wiring
from workers.engine_watch import ProgressLimit
from workers.launch import main

if __name__ == "__main__":
    wiring.ProgressLimit = partial(ProgressLimit, floor_s=float(sys.argv[1]))  # type: ignore[attr-defined, assignment]
    sys.exit(main())
