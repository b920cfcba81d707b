"""Retries are spread over three days, and some answers end them."""

from __future__ import annotations

import pytest

from workers.webhooks.schedule import JITTER, MAX_RETRY_AFTER_S, RETRY_DELAYS_S, DeliveryAttempt, judge


@pytest.mark.parametrize("status", [200, 204, 299])
def test_any_2xx_is_accepted(status: int) -> None:
    assert judge(DeliveryAttempt(status), 1, 0.0).action == "delivered"


@pytest.mark.parametrize("status", [None, 199, 301, 302, 400, 404, 429, 500, 503])
def test_anything_else_is_tried_again(status: int | None) -> None:
    assert judge(DeliveryAttempt(status), 1, 0.0).action == "retry"


def test_every_try_has_its_delay_until_none_is_left() -> None:
    failed = DeliveryAttempt(500)

    verdicts = [judge(failed, tries, 0.0) for tries in range(1, len(RETRY_DELAYS_S) + 2)]

    assert [verdict.in_s for verdict in verdicts[:-1]] == list(RETRY_DELAYS_S)
    assert verdicts[-1].action == "dead"


def test_what_was_our_own_standstill_is_soon_tried_again_and_not_forever() -> None:
    ours = DeliveryAttempt(None, "the relay stood still", is_ours=True, is_soon=True)

    assert judge(ours, 7, 0.0).in_s == RETRY_DELAYS_S[0]
    assert judge(ours, len(RETRY_DELAYS_S) + 1, 0.0).action == "dead"


def test_jitter_only_lengthens_a_delay() -> None:
    assert judge(DeliveryAttempt(500), 1, 0.5).in_s == pytest.approx(5.0 * (1 + JITTER / 2))


def test_gone_ends_it_at_once() -> None:
    assert judge(DeliveryAttempt(410), 1, 0.0).action == "dead"


def test_what_may_not_be_called_is_dead_at_once() -> None:
    assert judge(DeliveryAttempt(None, "blocked", refused=True), 1, 0.0).action == "dead"


@pytest.mark.parametrize("status", [429, 503])
def test_a_throttled_host_is_left_alone_as_long_as_it_asks(status: int) -> None:
    assert judge(DeliveryAttempt(status, retry_after_s=120.0), 1, 0.0).in_s == 120.0
    assert judge(DeliveryAttempt(status, retry_after_s=1.0), 1, 0.0).in_s == RETRY_DELAYS_S[0]
    assert judge(DeliveryAttempt(status, retry_after_s=1e9), 1, 0.0).in_s == MAX_RETRY_AFTER_S


def test_retry_after_means_nothing_beside_another_status() -> None:
    assert judge(DeliveryAttempt(500, retry_after_s=120.0), 1, 0.0).in_s == RETRY_DELAYS_S[0]
