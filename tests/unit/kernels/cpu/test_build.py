from __future__ import annotations

import platform
import shutil

import pytest

from kernels.cpu import build


def test_without_a_compiler_the_reason_is_given_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    assert build.build() is None

    assert "there is no g++; install it and run this again" in capsys.readouterr().out


def test_another_processor_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    assert build.build() is None

    assert "none for aarch64" in capsys.readouterr().out
