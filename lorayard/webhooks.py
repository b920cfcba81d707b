"""Signs and verifies webhooks to the Standard Webhooks specification (https://www.standardwebhooks.com)."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook, WebhookVerificationError

from lorayard.contract.errors import InvalidSignature
from lorayard.contract.result import JobResult


class WebhookJob(JobResult):
    """The job of a webhook; a large output is left out and looked up by the job's id."""

    output_omitted: bool = False


class WebhookEvent(BaseModel):
    """One verified delivery; its `webhook-id` header is the same for every try: use it to skip repeats."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="job. and the state: job.succeeded, job.failed, ...")
    timestamp: datetime = Field(description="when the job ended")
    data: WebhookJob


def verify(payload: bytes | str, headers: Mapping[str, str], secret: str | Iterable[str]) -> WebhookEvent:
    """Check a delivery before anything in it is believed, and return what it says.

    `payload` is the body exactly as received; `secret` is the tenant's `whsec_...`, or several of which one
    must match. Raises InvalidSignature if headers, time (5 minutes) or signature do not hold, ValueError
    if a secret is not valid.
    """
    verifiers = [_webhook(one) for one in ([secret] if isinstance(secret, str) else secret)]
    if not verifiers:
        raise ValueError("no secret given: pass the tenant's whsec_... secret")
    reasons = [reason for verifier in verifiers if (reason := _refusal(verifier, payload, headers))]
    if len(reasons) == len(verifiers):
        raise InvalidSignature(f"the webhook does not verify ({reasons[0]}): drop it, or check the secret")
    try:
        return WebhookEvent.model_validate_json(payload)
    except ValidationError as error:
        raise InvalidSignature(f"the webhook is signed but is not an event of Lorayard's: {error}") from error


def signed_headers(
    webhook_id: str, sent_at: datetime, payload: str, secrets: Iterable[str]
) -> dict[str, str]:
    """Make the headers of one delivery: one signature a secret, so that a receiver may rotate at leisure.

    `sent_at` is the time of this try; `payload` must be sent as exactly this string.
    """
    # The library takes the wall clock's digits for UTC, whatever zone they are of.
    sent_at = sent_at.astimezone(UTC)
    signatures = [_webhook(secret).sign(webhook_id, sent_at, payload) for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _webhook(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except (EmptyWebhookSecretError, binascii.Error, ValueError) as error:
        raise ValueError("a webhook secret is 'whsec_' and base64: this one is not") from error


def _refusal(verifier: Webhook, payload: bytes | str, headers: Mapping[str, str]) -> str | None:
    """Say why a delivery does not verify, or None if it does."""
    try:
        verifier.verify(payload, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError) as error:
        # ValueError: a body that is no UTF-8, a signature without a version or that is no base64.
        return str(error)
    return None
