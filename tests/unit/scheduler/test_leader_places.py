"""Every place at which the leader may fail is listed, so that a new one is tested as these are."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import scheduler

NEEDED: Final = {"reaper", "queue", "dispatch"}
"""What nothing is served without: a term ends if it fails for ever."""

READ_AGAIN: Final = {"intake", "worker_events", "control"}
"""What was read from the streams is read again at the next reclaim, as long as it is not acknowledged."""

OF_OTHERS: Final = {"commands": {"drains", "recalls", "lookahead"}, "publish": {"catalogue_mirror"}}
"""Chores that are done within others."""

CHORES: Final = {
    "catalogue",
    "collection",
    "end_hopeless",
    "end_put_aside",
    "fold_usage",
    "forget_departed",
    "hearing",
    "instructions",
    "outlook",
    "publish_pool",
    "quarantine",
    "quarantine_retries",
    "quarantined_jobs",
    "restored_shares",
    "retention",
    "revokes",
    "shares",
    "verify",
    *OF_OTHERS,
    *(name for inner in OF_OTHERS.values() for name in inner),
}

ITEMS: Final = {
    # tests/integration/scheduler/test_leader_trips.py
    *("intake", "control", "queue", "dispatch", "endings"),
    *("worker_departure", "worker_events", "worker_loss", "worker_view"),
    # tests/integration/scheduler/test_leader_places.py
    *("adapter_failure", "adapter_lift", "tenant_quota"),
    *("job_hopeless", "job_leased", "job_put_aside", "revokes"),
    *("worker_adapters", "worker_cancel", "worker_drain", "worker_event", "worker_recall", "worker_retries"),
    *("worker_hearing", "worker_roll"),
    # tests/unit/scheduler/test_rounds.py
    "worker_dispatch",
}

CALLS: Final = {
    "_part": "part",
    "chore": "chore",
    "_begin_with": "chore",
    "attempt": "item",
    "attempt_all": "item",
    "failed": "item",
}


def test_every_place_at_which_the_leader_may_fail_is_known_here() -> None:
    found: dict[str, set[str]] = {"part": set(), "chore": set(), "item": set()}
    unnamed = []
    for path in Path(scheduler.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            owner, _, name = ast.unparse(node.func).rpartition(".")
            kind = CALLS.get(name)
            if kind is None or not (owner in ("", "self") or owner.endswith("items")):
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found[kind].add(first.value)
            elif path.stem != "item_failures":
                unnamed.append(f"{path.stem}: {ast.unparse(node)[:60]}")

    assert found == {"part": set(NEEDED) | READ_AGAIN, "chore": CHORES, "item": ITEMS}
    assert len(unnamed) == 1, unnamed  # _begin_with hands its own name on
