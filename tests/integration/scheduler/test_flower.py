"""What Flower hears of jobs from the scheduler alone."""

from __future__ import annotations

import threading
from typing import Any

from lorayard.contract.states import JobState
from lorayard.server.celery_app import make_app
from tests.integration.scheduler.pool_rig import PoolRig
from tests.polling import eventually


class Listener:
    """Captures task events as Flower does."""

    def __init__(self, redis_url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._app = make_app(redis_url)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10.0)
        self._app.close()

    def types(self, job_id: object) -> list[str]:
        return [event["type"] for event in self.events if event.get("uuid") == str(job_id)]

    def _run(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            while not self._stopping.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)
                except TimeoutError:
                    continue


def test_a_job_shows_as_sent_and_its_end_as_revoked_or_failed(rig: PoolRig) -> None:
    listener = Listener(rig.redis_url)
    try:
        with rig.scheduler():

            def is_listened_to() -> bool:
                # Events reach only those who listen already.
                rig.submit(deadline_s=30.0)
                return bool(listener.events)

            eventually(is_listened_to, 20.0)
            (late,) = rig.submit(deadline_s=0.2, tenant="acme")
            (unknown,) = rig.submit(adapter="nobody")
            rig.wait_for(JobState.EXPIRED, late)

            eventually(lambda: listener.types(late) == ["task-sent", "task-revoked"])
            eventually(lambda: listener.types(unknown) == ["task-sent", "task-failed"])
    finally:
        listener.close()

    sent = next(event for event in listener.events if event.get("uuid") == str(late))
    assert sent["name"] == "lorayard.generate"
    assert "acme" in sent["kwargs"]
