"""Decides who may ask Flower for what: one gate before every page, call and file that it offers."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

CANCEL: Final = re.compile(r"/api/task/revoke/[0-9A-Za-z-]+")
_HEALTH: Final = "/healthcheck"
# The page of tasks asks for its rows by POST; that changes nothing.
_ROWS: Final = "/tasks/datatable"
_OWN_SITES: Final = frozenset({None, "same-origin", "none"})


class Refusal(NamedTuple):
    """An HTTP status and the sentence that goes with it."""

    status: int
    reason: str


class FlowerGate:
    """Lets in whoever knows the password, from this site's own pages or from no page at all.

    `hosts` are the names, without ports, under which Flower may be asked for: a foreign name that resolves to
    this machine is how a web page would get round its origin.
    """

    def __init__(self, user: str, password: str, *, hosts: Iterable[str], may_cancel: bool) -> None:
        self._credentials = f"{user}:{password}".encode()
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)
        self._may_cancel = may_cancel

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request is refused; None lets it in."""
        host = headers.get("Host", "")
        if _name_of(host) not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            return Refusal(
                403, f"Flower is not served as {host!r}: ask for {names}, or add to LORAYARD_FLOWER_HOSTS"
            )
        if not _comes_from_here(host, headers):
            return Refusal(
                403, "Flower serves no other site's pages: open its address in the browser's address bar"
            )
        if path == _HEALTH:
            return None if method in ("GET", "HEAD") else Refusal(405, "GET tells whether Flower serves")
        if not self._knows_password(headers.get("Authorization", "")):
            return Refusal(401, "Flower asks for a user and a password (LORAYARD_FLOWER_PASSWORD)")
        if method in ("GET", "HEAD") or (method == "POST" and path == _ROWS):
            return None
        return self._refused_change(method, path)

    def _refused_change(self, method: str, path: str) -> Refusal | None:
        if not (method == "POST" and CANCEL.fullmatch(path)):
            return Refusal(
                403,
                f"{method} {path} is refused: Flower here shows jobs, and changes neither workers nor tasks",
            )
        if not self._may_cancel:
            return Refusal(403, "Flower cancels no jobs here: start it with LORAYARD_FLOWER_CONTROL=1")
        return None

    def _knows_password(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._credentials)


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # half an IPv6 address
        return None


def _comes_from_here(host: str, headers: Mapping[str, str]) -> bool:
    """Tell a request of Flower's own pages, or of no page, from one that another site's page makes."""
    origin = headers.get("Origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return False
    return headers.get("Sec-Fetch-Site") in _OWN_SITES
