"""How many processors this process may keep busy."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path


def num_processors(root: Path = Path("/")) -> int:
    """Return how many there are by affinity and by the quota of this process's control groups, at least 1.

    `root` is where proc and sys lie.
    """
    quotas = [quota for folder in _folders(root) if (quota := _quota(folder)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas)]))


def _folders(root: Path) -> list[Path]:
    """Return the groups that limit this process, in either version; a container may see its own as root."""
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            group = top / path.lstrip("/")
            found += [top, *(one for one in (group, *group.parents) if top in one.parents)]
    return found


def _quota(folder: Path) -> float | None:
    """Return a group's quota in processors, None if it has none."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota_us < 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())
    return None
