"""`python -m workers`: one worker process."""

from __future__ import annotations

import sys

# The engine's child process imports this module as well, to find its way; it must not pay for Celery.
if __name__ == "__main__":
    from workers.launch import main

    sys.exit(main())
