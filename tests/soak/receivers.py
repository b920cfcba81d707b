"""Receives webhooks as the world does: well, after a failure, too late, or with answers that are lies.

Each kind listens on a loopback address of its own, so that they are different hosts, and writes every
delivery's bytes down before it answers. Those that fail or hang do so at a webhook's first try alone: the
second comes after some seconds, the third after five minutes.
"""

from __future__ import annotations

import base64
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.soak.journal import Journal

HOSTS = {"healthy": "127.0.0.11", "failing": "127.0.0.12", "hanging": "127.0.0.13", "lying": "127.0.0.14"}
LIES = (
    {"Retry-After": "99999999999999999999"},
    {"Retry-After": "Wed, 99 Foo 9999 99:99:99 GMT"},
    {"Set-Cookie": "session=" + "x" * 4000},
    {"Content-Encoding": "gzip"},
    {"Content-Length": "1000000"},
    {"Location": "http://127.0.0.1:1/"},
)


class Receivers:
    """The four receivers, in threads; `hang_s` is how long the hanging one takes for a first try.

    `num_more` healthy ones are on further hosts.
    """

    def __init__(self, folder: Path, hang_s: float, num_more: int = 0) -> None:
        self._hosts = HOSTS | {f"healthy-{number}": f"127.1.0.{number + 1}" for number in range(num_more)}
        self._folder = folder
        self._hang_s = hang_s
        self._servers: list[ThreadingHTTPServer] = []
        self._journals: list[Journal] = []
        self.urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        for kind, host in self._hosts.items():
            journal = Journal(self._folder / f"receiver-{kind}.jsonl")
            server = ThreadingHTTPServer((host, 0), _handler(kind, journal, self._hang_s))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, name=f"receiver-{kind}", daemon=True).start()
            self._servers.append(server)
            self._journals.append(journal)
            self.urls[kind] = f"http://{host}:{server.server_port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for journal in self._journals:
            journal.close()


def _handler(kind: str, journal: Journal, hang_s: float) -> type[BaseHTTPRequestHandler]:
    seen: set[str] = set()
    lock = threading.Lock()
    rng = random.Random(kind)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            with lock:
                is_first = self.path not in seen
                seen.add(self.path)
                status = 503 if kind == "failing" and is_first else 200
                # A first try that hangs is answered when nobody listens any more.
                counts = not (kind == "hanging" and is_first) and status == 200
                journal.append(
                    {
                        "event": "delivery",
                        "receiver": kind,
                        "path": self.path,
                        "headers": {name.lower(): value for name, value in self.headers.items()},
                        "body": base64.b64encode(body).decode(),
                        "status": status,
                        "counts": counts,
                    }
                )
            if kind == "hanging" and is_first:
                time.sleep(hang_s)
            self._answer(status, rng.choice(LIES) if kind == "lying" else {})

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()
            except OSError:
                return  # whoever asked has gone

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    return Handler
