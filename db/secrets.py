"""Webhook secrets at rest: encrypted with keys that only the environment knows."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from db.errors import SecretUnreadable

WEBHOOK_SECRET_BYTES = 32


class SecretBox:
    """Encrypts with the first key and decrypts with any, so that keys can be rotated."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise ValueError(f"LORAYARD_SECRET_KEY is empty: give a Fernet key, e.g. {new_key()}")
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError as error:
            raise ValueError(
                "LORAYARD_SECRET_KEY holds something that is no Fernet key (32 bytes as URL-safe base64): "
                f"give e.g. {new_key()}"
            ) from error

    def encrypt(self, text: str) -> bytes:
        """Encrypt a secret for the ledger."""
        return self._fernet.encrypt(text.encode())

    def decrypt(self, ciphertext: bytes) -> str:
        """Decrypt a secret of the ledger; raises SecretUnreadable."""
        try:
            return self._fernet.decrypt(ciphertext).decode()
        except InvalidToken as error:
            raise SecretUnreadable(
                "a webhook secret was encrypted with another key: add that key to LORAYARD_SECRET_KEY, "
                "after the new one and a comma, or set the tenant's secret anew"
            ) from error

    def seal_new(self) -> bytes:
        """Make a fresh webhook secret, already encrypted."""
        return self.encrypt(new_webhook_secret())


def new_key() -> str:
    """Make a key for LORAYARD_SECRET_KEY."""
    return Fernet.generate_key().decode()


def new_webhook_secret() -> str:
    """Make a webhook secret in the form of the Standard Webhooks spec."""
    return "whsec_" + base64.b64encode(os.urandom(WEBHOOK_SECRET_BYTES)).decode()
