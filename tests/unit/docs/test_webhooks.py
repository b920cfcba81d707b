"""The receiver in docs/webhooks.md does what it says."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from db.secrets import new_webhook_secret
from lorayard.contract.states import JobState
from lorayard.webhooks import WebhookEvent, WebhookJob, signed_headers

DOCUMENT = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()


def test_the_receiver_believes_what_is_signed_once_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    written: dict[str, Any] = {}
    exec(snippet, written)
    secret, seen = new_webhook_secret(), set[str]()
    data = WebhookJob(job_id=uuid4(), state=JobState.SUCCEEDED, output="HELLO")
    body = WebhookEvent(type="job.succeeded", timestamp=datetime.now(UTC), data=data).model_dump_json()
    headers = signed_headers("msg-1", datetime.now(UTC), body, [secret])

    statuses = [written["receive"](body.encode(), headers, secret, seen) for _ in range(2)]
    forged = written["receive"](body.replace("HELLO", "JELLO").encode(), headers, secret, seen)

    assert (statuses, forged) == ([204, 204], 400)
    assert capsys.readouterr().out == f"job.succeeded {data.job_id} HELLO\n"
