"""How long a healthy receiver waits beside bad ones: `python -m benchmarks.webhooks [--seconds N]`.

One relay, a real ledger, real sockets. A tenant whose receiver answers gets a webhook every 50 ms; meanwhile
another's hang on 80 hosts, or on 1,000 names of one address, or 200 tenants call one host that fails. A wait
is from the webhook's commit to its arrival. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import structlog
from sqlalchemy import Connection, text

from benchmarks.machine import describe_run, load_average
from benchmarks.report import table
from db import Database
from db.migrate import upgrade
from db.repositories.tenants import TenantRepository
from db.secrets import SecretBox, new_key
from lorayard.local import SERVERS, Stack, StackConfig
from workers.webhooks.addresses import AddressPolicy
from workers.webhooks.outbox import Outbox
from workers.webhooks.relay import Relay, RelayConfig
from workers.webhooks.sender import Sender

GOAL_P99_S = 1.0
EVERY_S = 0.05
LEAD_S = 3.0
"""So long the healthy receiver is known before the others come."""
TIMEOUT_S = 10.0
MANY_NAMES, FAILING, HEALTHY = "127.0.3.1", "127.0.4.1", "127.0.5.1"

_ADD = """
    INSERT INTO jobs (job_id, pool, tenant, priority, state, attempt, incarnation, reply_to, has_callback,
        est_prompt_tokens, max_tokens, submitted_at, leased_at, ended_at, prompt_tokens, completion_tokens,
        queue_ms, run_ms, finish_reason)
    SELECT job_id, 'pool', tenant, 1, 'succeeded', 1, 'w', 'client', true, 3, 5, now(), now(), now(), 3, 5,
        10, 20, 'stop' FROM unnest(CAST(:ids AS uuid[]), CAST(:tenants AS text[])) AS new(job_id, tenant);
    INSERT INTO job_inputs (job_id, request, metadata, submission_id)
    SELECT job_id, '{"prompt": "once"}', '{}', job_id FROM unnest(CAST(:ids AS uuid[])) AS job_id;
    INSERT INTO job_outputs SELECT job_id, 'upon' FROM unnest(CAST(:ids AS uuid[])) AS job_id;
    INSERT INTO webhook_deliveries (job_id, tenant, url, host, event_type)
    SELECT job_id, tenant, 'http://' || host || '/hook', host, 'job.succeeded' FROM unnest(
        CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:hosts AS text[])) AS new(job_id, tenant, host)
"""


class Bad(NamedTuple):
    """Webhooks that wait beside the healthy receiver's: tenants, and hosts with a port to be filled in."""

    name: str
    webhooks: tuple[tuple[str, str], ...] = ()


SCENARIOS = (
    Bad("none"),
    Bad(
        "one tenant, 80 hosts that hang",
        tuple(("bad", f"127.0.2.{number % 80 + 1}:{{hanging}}") for number in range(800)),
    ),
    Bad(
        "1,000 names of one address that hangs",
        tuple(("bad", f"name{number}.example{number}.com:{{hanging}}") for number in range(1000)),
    ),
    Bad(
        "200 tenants on one host that fails",
        tuple((f"bad{number % 200}", f"{FAILING}:{{failing}}") for number in range(1000)),
    ),
)


def main() -> int:
    """Print the machine and a row for each scenario; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webhooks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="of each scenario")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    facts = describe_run([], num_threads=1)
    print(f"{facts['machine']}; {facts['date']}, load {load_average()}\n")
    rows, is_met = [["beside", "webhooks", "p50, ms", "p99, ms", "longest, ms", "goal of p99, ms"]], True
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o711)  # Postgres, as a user of its own, passes through
        servers = stack.enter_context(Stack(StackConfig(state_dir=Path(folder) / "s", parts=SERVERS)))
        upgrade(servers.postgres.url)
        key = new_key()
        for bad in SCENARIOS:
            waits = sorted(_run(servers.postgres.url, key, bad, options.seconds))
            p99 = waits[int(0.99 * len(waits))]
            is_met &= p99 <= GOAL_P99_S
            figures = (waits[len(waits) // 2], p99, waits[-1], GOAL_P99_S)
            rows.append([bad.name, str(len(waits)), *(f"{1000 * figure:.0f}" for figure in figures)])
    print(table(rows))
    return 0 if is_met else 1


def _run(url: str, key: str, bad: Bad, seconds: float) -> list[float]:
    """Return the waits of the healthy receiver's webhooks; one that does not arrive counts as endless."""
    database, box = Database(url), SecretBox([key])
    arrived: dict[UUID, float] = {}
    with ExitStack() as stack:
        stack.callback(database.dispose)
        healthy = stack.enter_context(_receiver(HEALTHY, 204, arrived))
        failing = stack.enter_context(_receiver(FAILING, 500, {}))
        hanging = _hang(stack)
        others = [(tenant, host.format(hanging=hanging, failing=failing)) for tenant, host in bad.webhooks]
        for tenant in {"good", *(tenant for tenant, _ in others)}:
            database.run(partial(_enter, tenant=tenant, box=box))
        stack.enter_context(_relay(url, key))
        committed: dict[UUID, float] = {}
        began, are_added = time.monotonic(), False
        while (elapsed_s := time.monotonic() - began) < LEAD_S + seconds:
            if elapsed_s >= LEAD_S and not are_added:
                _add(database, others)
                are_added = True
            (job_id,) = _add(database, [("good", f"{HEALTHY}:{healthy}")])
            if are_added:
                committed[job_id] = time.monotonic()
            time.sleep(EVERY_S)
        deadline = time.monotonic() + 5 * GOAL_P99_S
        while not committed.keys() <= arrived.keys() and time.monotonic() < deadline:
            time.sleep(0.05)
    with database.transaction() as connection:
        connection.execute(text("TRUNCATE webhook_deliveries, job_outputs, job_inputs, jobs CASCADE"))
    database.dispose()
    return [arrived.get(job_id, float("inf")) - at for job_id, at in committed.items()]


def _enter(connection: Connection, tenant: str, box: SecretBox) -> None:
    TenantRepository(connection).ensure(tenant, box.seal_new)


def _add(database: Database, webhooks: Sequence[tuple[str, str]]) -> list[UUID]:
    """Write finished jobs with their webhooks, in one transaction."""
    values: dict[str, Any] = {
        "ids": [uuid4() for _ in webhooks],
        "tenants": [tenant for tenant, _ in webhooks],
        "hosts": [host for _, host in webhooks],
    }
    with database.transaction() as connection:
        for statement in _ADD.split(";"):
            connection.execute(text(statement), values)
    return list(values["ids"])


@contextmanager
def _receiver(address: str, status: int, arrived: dict[UUID, float]) -> Iterator[int]:
    """Answer every webhook with a status, noting when each job's came; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            at = time.monotonic()
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            arrived.setdefault(UUID(event["data"]["job_id"]), at)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # with the module's 5, a connection begun while it is full takes a second

    server = Server((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def _hang(stack: ExitStack) -> int:
    """Take connections that nobody ever answers, on one port of many addresses; returns it."""
    first = stack.enter_context(closing(socket.create_server((MANY_NAMES, 0), backlog=1024)))
    port = int(first.getsockname()[1])
    for number in range(1, 81):
        stack.enter_context(closing(socket.create_server((f"127.0.2.{number}", port), backlog=1024)))
    return port


def _resolve(host: str, port: int, **options: Any) -> list[Any]:
    return socket.getaddrinfo(MANY_NAMES if host.startswith("name") else host, port, **options)


@contextmanager
def _relay(url: str, key: str) -> Iterator[None]:
    """Run one relay in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(url, key))
    process.start()
    yield
    process.terminate()
    process.join()


def _serve(url: str, key: str) -> None:
    """Relay until ended, with our own names."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    async def relay() -> None:
        policy, config = AddressPolicy((ip_network("127.0.0.0/8"),)), RelayConfig()
        outbox = Outbox(Database(url), Database(url, pool_size=1), config.lease_s)
        async with Sender(policy, TIMEOUT_S, config.concurrency, _resolve) as sender:
            await Relay(outbox, sender, SecretBox([key]), config).run(asyncio.Event(), lambda: None)

    asyncio.run(relay())


if __name__ == "__main__":
    sys.exit(main())
