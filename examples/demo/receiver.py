"""A webhook receiver as a customer would write it: verify first, then believe."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from uuid import UUID

from lorayard import InvalidSignature, JobState
from lorayard.webhooks import verify

if TYPE_CHECKING:
    from collections.abc import Iterator


class Receiver:
    """What has arrived so far: job states from verified deliveries, and a count of refused ones."""

    def __init__(self) -> None:
        self.states: dict[UUID, JobState] = {}
        self.refused = 0
        self.url = ""
        self._secrets: dict[str, str] = {}
        self._lock = threading.Lock()

    def trust(self, secrets: Mapping[str, str]) -> None:
        """Accept deliveries signed with these secrets, one per tenant."""
        self._secrets = dict(secrets)

    def receive(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Check one delivery and return the HTTP status to answer it with."""
        try:
            event = verify(body, headers, list(self._secrets.values()))
        except InvalidSignature:
            with self._lock:
                self.refused += 1
            return 401
        with self._lock:
            self.states[event.data.job_id] = event.data.state
        return 204


@contextmanager
def serve(receiver: Receiver) -> Iterator[None]:
    """Serve `receiver` on a free loopback port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            self.send_response(receiver.receive(body, dict(self.headers)))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent: the demo's table says what arrived."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="receiver", daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/jobs"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
