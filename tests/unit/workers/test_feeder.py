"""What waits for the engine goes out together."""

from __future__ import annotations

from uuid import uuid4

import pytest

from db.records import JobAttempt
from workers.engine.core.sampling_params import SamplingParams
from workers.engine.serving.process import AbortRequest, AddRequest
from workers.feeder import MAX_SENT, Command, Feeder


class Sent:
    """A feeder that nobody has started, and the messages that it sends when told to take a step."""

    def __init__(self) -> None:
        self.messages: list[tuple[AddRequest | Command, ...]] = []
        self.unsent: list[AddRequest] = []
        self.unsendable: AddRequest | None = None
        self.gate_is_open = True
        self.feeder = Feeder(
            self.send, lambda: self.gate_is_open, on_unsent=self.keep, on_broken=lambda _: None
        )

    def send(self, *commands: AddRequest | Command) -> None:
        if self.unsendable in commands:
            raise ValueError("cannot be pickled")
        self.messages.append(commands)

    def keep(self, request: AddRequest, error: Exception) -> None:
        self.unsent.append(request)

    def add(self, number: int) -> list[AddRequest]:
        requests = [AddRequest(str(n), "hello", None, SamplingParams(), None) for n in range(number)]
        self.feeder.add({JobAttempt(uuid4(), 1): request for request in requests})
        return requests


@pytest.fixture
def sent() -> Sent:
    return Sent()


def test_waiting_requests_make_one_message_behind_the_commands(sent: Sent) -> None:
    requests = sent.add(3)
    sent.feeder.command(AbortRequest("x"))
    sent.feeder.command(AbortRequest("y"))

    sent.feeder._step()
    sent.feeder._step()

    assert sent.messages == [(AbortRequest("x"), AbortRequest("y")), tuple(requests)]


def test_a_message_holds_no_more_than_the_engine_takes_at_once(sent: Sent) -> None:
    sent.add(MAX_SENT + 1)

    sent.feeder._step()
    sent.feeder._step()

    assert [len(message) for message in sent.messages] == [MAX_SENT, 1]


def test_a_request_that_cannot_be_sent_ends_alone(sent: Sent) -> None:
    first, odd, last = sent.add(3)
    sent.unsendable = odd

    sent.feeder._step()

    assert sent.messages == [(first,), (last,)]
    assert sent.unsent == [odd]
