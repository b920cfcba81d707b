"""An engine's child process without an engine: every request ends at once with one token.

A double for measurements alone. It speaks the protocol of `workers.engine.serving.child` over the same pipe,
and writes the same board, so that its parent is the real worker, watch, pool, committer and all. The text of
an answer is the monotonic time at which its request arrived, in nanoseconds: what came before it is dispatch,
what comes after is the way back.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Final

from workers.engine.core.config import EngineConfig
from workers.engine.core.engine_info import EngineInfo
from workers.engine.core.outputs import CompletionOutput, RequestMetrics, RequestOutput
from workers.engine.core.residency_change import ResidencyChange
from workers.engine.serving.messages import AddRequest, Command, EngineEvents, Ready, Start, Started, Stop
from workers.engine.serving.step_board import Phase, StepBoard

PROGRAM: Final = """
from benchmarks.plane.instant_engine import main
main(int(sys.argv[3]))
"""
"""What a worker's `EngineProcess` is to start in place of the engine."""

MAX_COMMANDS_PER_STEP: Final = 64
"""As the engine's child has it."""

DEVICE_MS: Final = 0.1
KV_BLOCKS: Final = 1_000_000


def main(file: int) -> None:
    """Serve the connection that was inherited from the parent, until it is closed."""
    with Connection(file) as connection:
        start: Start = connection.recv()
        board = StepBoard(start.board_file, start.board_bytes)
        os.close(start.board_file)
        connection.send(Ready(_info(start.config)))
        engine = InstantEngine(start.config.max_num_seqs)
        board.enter(Phase.WAITING)
        try:
            while (commands := _receive(connection, board)) is not None:
                connection.send(engine.step(commands))
                board.enter(Phase.WAITING)
        except (EOFError, OSError):
            return


def _receive(connection: Connection, board: StepBoard) -> list[Command] | None:
    """Wait for commands, and take those that have come; None to stop."""
    commands: list[Command] = []
    while not commands or (len(commands) < MAX_COMMANDS_PER_STEP and connection.poll()):
        received: tuple[Command, ...] = connection.recv()
        for command in received:
            board.take(command.request_id if isinstance(command, AddRequest) else None)
        if any(isinstance(command, Stop) for command in received):
            return None
        commands += received
    return commands


class InstantEngine:
    """Mutable: the adapters that it has been asked for, all of which it calls resident."""

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._resident: dict[str, ResidencyChange] = {}
        self._busy_ms = 0.0

    def step(self, commands: list[Command]) -> EngineEvents:
        """Answer every request."""
        now = time.monotonic_ns()
        requests = [command for command in commands if isinstance(command, AddRequest)]
        self._busy_ms += DEVICE_MS * len(requests)
        return EngineEvents(
            started=tuple(Started(request.request_id) for request in requests),
            finished=tuple(_answer(request, now) for request in requests),
            residency=tuple(change for one in requests if (change := self._load(one)) is not None),
            epoch=len(self._resident),
            free_seqs=self._max_num_seqs,
            free_kv_blocks=KV_BLOCKS,
            busy_ms=self._busy_ms,
            waiting=0,
        )

    def _load(self, request: AddRequest) -> ResidencyChange | None:
        revision = getattr(request.lora, "revision", None)
        if revision is None or revision in self._resident:
            return None
        change = ResidencyChange(len(self._resident) + 1, revision, "device")
        self._resident[revision] = change
        return change


def _answer(request: AddRequest, now_ns: int) -> RequestOutput:
    now_s = now_ns / 1e9
    return RequestOutput(
        request_id=request.request_id,
        prompt=None,
        prompt_token_ids=[1],
        outputs=[CompletionOutput(0, str(now_ns), [1], "length")],
        finished=True,
        lora_request=request.lora,
        metrics=RequestMetrics(now_s, now_s, now_s, now_s, 1, 1, DEVICE_MS, 0),
        sampling={"temperature": 0.0},
    )


def _info(config: EngineConfig) -> EngineInfo:
    return EngineInfo(
        model=config.model,
        served_model_name=config.served_model_name or "instant",
        dtype="float32",
        vocab_size=1,
        max_model_len=config.max_model_len or 2048,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=2048,
        block_size=16,
        num_kv_blocks=KV_BLOCKS,
        max_loras=config.max_loras,
        max_lora_rank=config.max_lora_rank,
        quantization=None,
        quant_storage="keep",
        linear_bytes=0,
        cpu_kernels="torch",
    )
