"""`python -m lorayard.server.flower`: Flower behind a gate of ours, read-only, with bounded memory."""

from __future__ import annotations

from lorayard.process.environment import leave_out_extras, readable_settings, run_service

if __name__ == "__main__":
    leave_out_extras()

import asyncio
import base64
import logging
import secrets
import signal
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from celery.events.receiver import EventReceiver
from flower.api.control import ControlHandler
from flower.app import Flower
from flower.events import Events
from flower.options import options
from flower.urls import settings as flower_settings
from flower.views.tasks import TaskView
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from lorayard.contract.addresses import Password, RedisPassword
from lorayard.process.logs import configure_logs, worded
from lorayard.process.server_check import require_usable_redis
from lorayard.server.celery_app import make_app
from lorayard.server.flower_gate import CANCEL, FlowerGate, Refusal
from lorayard.transport.redis_url import RedisUrl

GAVE_UP: Final = 1
MAX_WAITING_EVENTS: Final = 2_000
BLOCKING_THREADS: Final = 4
"""Each asks workers, or the broker, something for a page."""

RETRY_S: Final = 1.0

logger = structlog.get_logger(__name__)
"""Read and not yet shown; what else comes waits in Redis, which cuts a reader off that is too slow."""

MAX_WORKERS: Final = 1000
MAX_BODY_BYTES: Final = 65_536
FORGET_WORKERS_AFTER_S: Final = 3600.0
"""Every start of a worker has a name of its own; with those that are gone goes what is counted by name."""

_MINUTE_MS: Final = 60_000


class FlowerSettings(RedisPassword):
    """What Flower is told."""

    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    flower_user: str = Field(default="lorayard", min_length=1, pattern="^[^:]+$")
    flower_password_file: Path | None = None
    flower_password: Password = None
    flower_address: str = Field(default="127.0.0.1", description="where it listens; empty: everywhere")
    flower_port: int = Field(default=5555, ge=1, le=65_535)
    flower_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1", "localhost", "::1"), description="names that it may be asked for by"
    )
    flower_control: bool = Field(default=False, description="let it cancel jobs")
    flower_max_tasks: int = Field(default=10_000, ge=1, description="tasks kept in memory")
    flower_state: Path | None = Field(default=None, description="file that keeps its tasks over a restart")

    @field_validator("flower_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("flower_password")
    @classmethod
    def _is_there(cls, value: SecretStr | None) -> SecretStr:
        if value is None:
            raise ValueError(
                "it is not set: whoever reaches Flower would see every prompt's tenant and output"
            )
        return value

    @property
    def password(self) -> str:
        """The password in clear."""
        assert self.flower_password is not None
        return self.flower_password.get_secret_value()


class GuardedFlower(Flower):  # type: ignore[misc]
    """Flower's Tornado application with the gate before all that it serves."""

    max_workers = BLOCKING_THREADS

    def __init__(self, gate: FlowerGate, *, may_cancel: bool, **flower: Any) -> None:
        self._gate = gate
        # Flower's own check, which refuses its whole API without one, cannot compare every password: it gets
        # one that never leaves this process, with requests that the gate has let in.
        inner = secrets.token_urlsafe()
        options.basic_auth = [f"gate:{inner}"]
        self._let_in = f"Basic {base64.b64encode(f'gate:{inner}'.encode()).decode()}"
        super().__init__(options=options, **flower)
        if may_cancel:
            self.add_handlers(".*", [(f"({CANCEL.pattern})", _Cancel), ("/task/(.+)", _CancellableTask)])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Route a request if the gate lets it in."""
        refusal = self._gate.refusal(request.method or "", request.path, request.headers)
        if refusal is not None:
            return self.get_handler_delegate(request, _Refused, {"refusal": refusal})
        request.headers["Authorization"] = self._let_in
        return super().find_handler(request, **kwargs)


class _Refused(RequestHandler):
    def initialize(self, refusal: Refusal) -> None:
        self._refusal = refusal

    def check_xsrf_cookie(self) -> None:
        """Leave it to the refusal."""

    def prepare(self) -> None:
        self.set_status(self._refusal.status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        if self._refusal.status == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", 'Basic realm="Flower", charset="UTF-8"')
        self.finish(f"{self._refusal.reason}\n")


class _Cancel(ControlHandler):  # type: ignore[misc]
    """Revokes a task, which cancels a job that is queued or runs, or all of a micro-batch."""

    async def post(self, path: str) -> None:
        task_id = path.rpartition("/")[2]
        await self.run_blocking("task.revoke", task_id, self.capp.control.revoke, task_id)
        self.write({"message": f"Revoked '{task_id}'"})


class _CancellableTask(TaskView):  # type: ignore[misc]
    """The page of a task, with its button to cancel."""

    def render(self, *names: str, **fields: Any) -> None:
        super().render(*names, **{**fields, "read_only": False})


class BoundedEvents(Events):  # type: ignore[misc]
    """What Flower remembers, and how much of what it heard may wait to be remembered."""

    def __init__(self, *arguments: Any, **fields: Any) -> None:
        super().__init__(*arguments, **fields)
        self._room = threading.BoundedSemaphore(MAX_WAITING_EVENTS)

    def run(self) -> None:
        """Read events while the process lives; Flower's own pauses in an outage get ever longer."""
        while True:
            try:
                self.read()
            except Exception as error:  # noqa: BLE001 - kombu raises many kinds; the next try begins anew
                logger.warning("flower.no_events", error=worded(error))
                time.sleep(RETRY_S)

    def read(self) -> None:
        """Read events until the connection fails."""
        with self.capp.connection() as connection:
            receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
            receiver.capture(limit=None, timeout=None, wakeup=True)

    def on_event(self, event: dict[str, Any]) -> None:
        """Hand an event to the thread that remembers; called by the one that reads, which waits for it."""
        self._room.acquire()
        self.io_loop.add_callback(self._remember, event)

    def _remember(self, event: dict[str, Any]) -> None:
        self._room.release()
        self.state.event(event)

    def forget_workers(self, workers: dict[str, Any], now: float) -> None:
        """Drop what is kept by name of workers that were last heard an hour ago."""
        state = self.state
        gone = {
            name
            for name, worker in state.workers.items()
            if _was_last_heard(worker) < now - FORGET_WORKERS_AFTER_S
        }
        for name in gone:
            for named in (state.workers, state.counter, state.tasks_by_worker, workers):
                named.pop(name, None)
        state.metrics.remove_workers(gone)


def _was_last_heard(worker: Any) -> float:
    return float(worker.heartbeats[-1]) if worker.heartbeats else 0.0


def make_flower(settings: FlowerSettings) -> GuardedFlower:
    """Make the application; nothing listens or connects yet."""
    options.read_only = True  # what may be done nevertheless has handlers of its own
    options.max_workers, options.max_tasks = MAX_WORKERS, settings.flower_max_tasks
    celery, loop = make_app(settings.redis_url), IOLoop.current()
    gate = FlowerGate(
        settings.flower_user,
        settings.password,
        hosts=settings.flower_hosts,
        may_cancel=settings.flower_control,
    )
    events = BoundedEvents(
        celery,
        loop,
        db=str(settings.flower_state),
        persistent=settings.flower_state is not None,
        state_save_interval=_MINUTE_MS,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
    )
    return GuardedFlower(
        gate,
        may_cancel=settings.flower_control,
        capp=celery,
        events=events,
        io_loop=loop,
        **flower_settings,
    )


def main() -> int:
    """Read the environment and serve until SIGTERM; returns the exit status."""
    with readable_settings("lorayard.server.flower"):
        settings = FlowerSettings()
    configure_logs(process="flower")
    require_usable_redis("lorayard.server.flower", settings.redis_url)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # a refusal is no fault
    asyncio.set_event_loop(asyncio.new_event_loop())
    flower = make_flower(settings)
    try:
        sockets = bind_sockets(settings.flower_port, settings.flower_address)
    except OSError as error:
        where = f"{settings.flower_address}:{settings.flower_port}"
        print(f"Flower cannot listen on {where} ({error}): set LORAYARD_FLOWER_PORT", file=sys.stderr)  # noqa: T201
        return GAVE_UP
    HTTPServer(flower, max_body_size=MAX_BODY_BYTES).add_sockets(sockets)
    tidying = PeriodicCallback(
        lambda: flower.events.forget_workers(flower.inspector.workers, time.time()), _MINUTE_MS
    )
    tidying.start()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_event_loop().add_signal_handler(signum, flower.stop)
    flower.start()
    return 0


if __name__ == "__main__":
    sys.exit(run_service(main))
