"""Webhook secrets are unreadable at rest, and keys can be rotated."""

from __future__ import annotations

import base64

import pytest

from db.errors import SecretUnreadable
from db.secrets import SecretBox, new_key, new_webhook_secret


def test_a_secret_comes_back_and_is_not_seen_in_its_ciphertext() -> None:
    box = SecretBox([new_key()])

    ciphertext = box.encrypt("whsec_abc")

    assert b"abc" not in ciphertext
    assert box.decrypt(ciphertext) == "whsec_abc"


def test_a_new_key_in_front_still_reads_what_the_old_one_wrote() -> None:
    old, new = new_key(), new_key()
    written = SecretBox([old]).encrypt("secret")

    assert SecretBox([new, old]).decrypt(written) == "secret"
    with pytest.raises(SecretUnreadable, match="LORAYARD_SECRET_KEY"):
        SecretBox([new]).decrypt(written)


@pytest.mark.parametrize("keys", [[], ["short"], ["n\u00f6t-base64"]])
def test_a_bad_key_is_refused_with_the_remedy(keys: list[str]) -> None:
    with pytest.raises(ValueError, match=r"LORAYARD_SECRET_KEY .*: give"):
        SecretBox(keys)


def test_a_fresh_secret_has_the_form_and_length_of_the_spec() -> None:
    secrets = {new_webhook_secret() for _ in range(10)}

    assert len(secrets) == 10
    for secret in secrets:
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
