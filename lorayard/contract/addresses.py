"""Reads a server's address and, from a variable or a file of its own, its password; so any password works.

A settings class lists the fields `x_password_file`, `x_password` and `x_url`, in this order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict


def with_password(url: str, password: str) -> str:
    """Write a password, percent-encoded, into an address that has none; raises ValueError if it has one."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError("it is no URL: write it as scheme://host:port/name")
    end = min((place for mark in "/?#" if (place := rest.find(mark)) >= 0), default=len(rest))
    user, _, hosts = rest[:end].rpartition("@")
    if ":" in user:
        raise ValueError("it has a password, and another is given by itself: leave out one of them")
    return f"{scheme}://{user}:{quote(password, safe='')}@{hosts}{rest[end:]}"


def _read(password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Take a password as given, or the first line of its file."""
    path: Path | None = info.data.get(f"{info.field_name}_file")
    if path is None:
        return password
    if password is not None:
        raise ValueError("it is given, and so is the file that holds it (..._FILE): leave out one of them")
    try:
        text = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"its file cannot be read ({error}): name a readable text file") from error
    if not text or "\n" in text:
        raise ValueError(f"its file {path} has to hold one line, the password")
    return SecretStr(text)


def _complete(url: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
    """Write the password of the same server into its address."""
    server = str(info.field_name).removesuffix("_url").removesuffix("_direct")
    password: SecretStr | None = info.data.get(f"{server}_password")
    if url is None or password is None:
        return url
    if isinstance(url, SecretStr):
        return SecretStr(with_password(url.get_secret_value(), password.get_secret_value()))
    return with_password(url, password.get_secret_value())


Password = Annotated[SecretStr | None, AfterValidator(_read), Field(validate_default=True, repr=False)]
"""A settings field beside another, of the same name and `_file`, that may name the file it is read from."""

WITH_PASSWORD = AfterValidator(_complete)
"""Completes a field `x_url`, or `x_direct_url`, by the field `x_password` that stands before it."""

ServerUrl = Annotated[str, WITH_PASSWORD, Field(validate_default=True, repr=False)]
SecretServerUrl = Annotated[SecretStr, WITH_PASSWORD]

_READING = SettingsConfigDict(
    env_prefix="LORAYARD_", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
)


class RedisPassword(BaseSettings):
    """What a process is told of Redis' password: `LORAYARD_REDIS_PASSWORD`, or the file that holds it."""

    model_config = _READING

    redis_password_file: Path | None = None
    redis_password: Password = None


class DatabasePassword(BaseSettings):
    """What it is told of Postgres': `LORAYARD_DATABASE_PASSWORD`, or the file that holds it."""

    model_config = _READING

    database_password_file: Path | None = None
    database_password: Password = None
