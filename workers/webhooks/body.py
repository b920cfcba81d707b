"""Renders what a webhook says."""

from __future__ import annotations

from db.records import Delivery
from lorayard.webhooks import WebhookEvent, WebhookJob

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
