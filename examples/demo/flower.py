"""Asks Flower's API what it saw."""

from __future__ import annotations

import time

import httpx

from lorayard.contract.tasks import GENERATE


def count_succeeded(flower_url: str, expected: int, within_s: float) -> int:
    """Count the jobs that Flower shows as succeeded, waiting up to `within_s` for the expected number.

    Task events are best effort and arrive a little later than results.
    """
    deadline = time.monotonic() + within_s
    while (seen := _succeeded(flower_url)) < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return seen


def _succeeded(flower_url: str) -> int:
    with httpx.Client(trust_env=False, timeout=30) as client:
        answer = client.get(
            f"{flower_url}/api/tasks", params={"taskname": GENERATE, "state": "SUCCESS", "limit": 1_000_000}
        )
    return len(answer.raise_for_status().json())
