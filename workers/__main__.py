"""`python -m workers`: one worker process."""

from __future__ import annotations

import sys

from workers.launch import main

if __name__ == "__main__":
    sys.exit(main())
