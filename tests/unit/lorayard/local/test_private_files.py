"""Secrets are written once, for their owner alone."""

from __future__ import annotations

import base64
from pathlib import Path

from lorayard.local.private_files import new_key, new_password, read_or_create, write_private


def test_a_private_file_is_its_owners_alone_even_when_it_replaces_an_open_one(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)

    write_private(path, "new")

    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    first = read_or_create(tmp_path / "password", new_password)

    assert read_or_create(tmp_path / "password", new_password) == first


def test_secrets_differ_and_a_key_has_32_bytes() -> None:
    assert new_password() != new_password()
    assert len(base64.urlsafe_b64decode(new_key())) == 32
