"""Renders what a webhook says, and signs it."""

from __future__ import annotations

from datetime import UTC, datetime

from db.errors import SecretUnreadable
from db.records import Delivery
from db.secrets import SecretBox
from lorayard.webhooks import WebhookEvent, WebhookJob, signed_headers
from workers.webhooks.schedule import DeliveryAttempt

MAX_OUTPUT_BYTES = 65_536


def render(delivery: Delivery) -> str:
    """Render the body of a delivery; the same string every try, since the ledger's row is final."""
    result = delivery.result
    omitted = result.output is not None and len(result.output.encode()) > MAX_OUTPUT_BYTES
    job = WebhookJob(
        **result.model_dump(exclude={"output"}),
        output=None if omitted else result.output,
        output_omitted=omitted,
    )
    return WebhookEvent(type=delivery.event_type, timestamp=delivery.ended_at, data=job).model_dump_json()


def signed_headers_of(
    delivery: Delivery, body: str, ciphertexts: tuple[bytes, ...], box: SecretBox
) -> dict[str, str] | DeliveryAttempt:
    """Sign a body with all secrets of its tenant, now; an attempt that failed if there are none."""
    if not ciphertexts:
        remedy = f"`lorayard webhooks secret {delivery.tenant}`, then `lorayard webhooks replay`"
        return DeliveryAttempt(
            None, f"tenant {delivery.tenant!r} has no webhook secret: {remedy}", refused=True, is_ours=True
        )
    try:
        secrets = [box.decrypt(ciphertext) for ciphertext in ciphertexts]
    except SecretUnreadable as error:
        return DeliveryAttempt(None, str(error), is_ours=True)
    return signed_headers(str(delivery.id), datetime.now(UTC), body, secrets)
