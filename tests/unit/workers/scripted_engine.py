"""An engine's process without an engine: a test says what it answers."""

from __future__ import annotations

import queue
from typing import Any

from workers.engine.core.errors import EngineDied, EngineHung
from workers.engine.core.outputs import RequestOutput
from workers.engine.core.residency_change import ResidencyChange
from workers.engine.serving.messages import EngineEvents, Started, TokenDelta
from workers.engine.serving.step_board import Phase, Progress


class ScriptedEngine:
    """Takes commands and says what it is told to say."""

    def __init__(self) -> None:
        self.commands: list[Any] = []
        self.events: queue.Queue[EngineEvents | EngineDied | None] = queue.Queue()
        self.stopped = False
        self.pid = 0
        self.word = Progress(phase=Phase.WAITING)
        self.num_sent = 0
        self.given_up = ""

    def progress(self) -> Progress:
        return self.word

    def give_up(self, reason: str) -> EngineHung:
        self.given_up = reason
        return EngineHung(None, reason)

    def send(self, *commands: Any) -> None:
        self.commands += commands

    def interrupt(self) -> None:
        self.events.put(None)

    def receive(self, timeout_s: float | None) -> EngineEvents | None:
        try:
            said = self.events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(said, EngineDied):
            raise said
        return said

    def stop(self) -> None:
        self.stopped = True

    def say(
        self,
        *finished: RequestOutput,
        started: tuple[str, ...] = (),
        residency: tuple[ResidencyChange, ...] = (),
        deltas: tuple[TokenDelta, ...] = (),
    ) -> None:
        """Answer as if a step had ended."""
        self.events.put(
            EngineEvents(
                started=tuple(map(Started, started)),
                finished=finished,
                residency=residency,
                epoch=1,
                free_seqs=3,
                free_kv_blocks=30,
                busy_ms=1.0,
                waiting=0,
                deltas=deltas,
            )
        )

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """List the commands of one kind."""
        return [command for command in self.commands if isinstance(command, kind)]
