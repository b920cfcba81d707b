"""A delivery is believed only when its signature, time and body hold."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest

from lorayard.contract.errors import InvalidSignature
from lorayard.contract.states import JobState
from lorayard.webhooks import WebhookEvent, WebhookJob, signed_headers, verify

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()


def event() -> WebhookEvent:
    data = WebhookJob(job_id=uuid4(), state=JobState.SUCCEEDED, output="HELLO é")
    return WebhookEvent(type="job.succeeded", timestamp=datetime.now(UTC), data=data)


def delivery(sent_at: datetime | None = None, *secrets: str) -> tuple[str, dict[str, str]]:
    body = event().model_dump_json()
    return body, signed_headers("msg-1", sent_at or datetime.now(UTC), body, secrets or (SECRET,))


def test_a_signed_delivery_comes_back_as_its_event() -> None:
    body, headers = delivery()

    read = verify(body.encode(), headers, SECRET)

    assert read.type == "job.succeeded"
    assert read.data.output == "HELLO é"


def test_header_names_may_come_in_any_case() -> None:
    body, headers = delivery()

    assert verify(body, {name.title(): value for name, value in headers.items()}, SECRET)


def test_both_secrets_hold_while_one_is_rotated() -> None:
    body, headers = delivery(None, SECRET, OTHER)

    assert verify(body, headers, SECRET)
    assert verify(body, headers, OTHER)


def test_a_receiver_may_hold_several_secrets() -> None:
    body, headers = delivery(None, OTHER)

    assert verify(body, headers, [SECRET, OTHER])


def test_the_time_of_sending_may_be_given_in_any_zone() -> None:
    elsewhere = datetime.now(timezone(timedelta(hours=9)))

    body, headers = delivery(elsewhere)

    assert verify(body, headers, SECRET)


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(minutes=-6)])
def test_a_delivery_far_from_now_is_refused(age: timedelta) -> None:
    body, headers = delivery(datetime.now(UTC) - age)

    with pytest.raises(InvalidSignature, match=r"too (old|new)"):
        verify(body, headers, SECRET)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "msg-2"),
        ("webhook-timestamp", "1"),
        ("webhook-timestamp", "soon"),
        ("webhook-signature", "v1,AAAA"),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,no base64 at all"),
        ("webhook-signature", ""),
    ],
)
def test_a_changed_header_is_refused(name: str, value: str) -> None:
    body, headers = delivery()

    with pytest.raises(InvalidSignature):
        verify(body, headers | {name: value}, SECRET)


def test_a_changed_body_is_refused() -> None:
    body, headers = delivery()

    with pytest.raises(InvalidSignature, match="No matching signature"):
        verify(body.replace("HELLO", "JELLO"), headers, SECRET)


def test_a_body_that_is_no_text_is_refused() -> None:
    _, headers = delivery()

    with pytest.raises(InvalidSignature):
        verify(b"\xff\xfe", headers, SECRET)


def test_a_signed_body_that_is_not_an_event_is_refused() -> None:
    headers = signed_headers("msg-1", datetime.now(UTC), '{"hello": 1}', [SECRET])

    with pytest.raises(InvalidSignature, match="not an event"):
        verify('{"hello": 1}', headers, SECRET)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_%%%", "", []])
def test_a_secret_that_is_none_is_an_error_of_the_receivers(secret: str | list[str]) -> None:
    body, headers = delivery()

    with pytest.raises(ValueError, match="secret"):
        verify(body, headers, secret)
