"""The engine's side of its process: obey between steps, step while there is work, sleep otherwise."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from workers.engine.core.child_process import collect_garbage
from workers.engine.core.config import EngineConfig
from workers.engine.core.device_failures import is_device_failure
from workers.engine.core.errors import AdapterInUse, ConfigError, EngineError
from workers.engine.core.outputs import CompletionOutput, RequestFailure, RequestMetrics, RequestOutput
from workers.engine.lora.loading import LoaderChild
from workers.engine.serving.device_loss import leave_lost_device, start_failure
from workers.engine.serving.engine import Launch, LLMEngine
from workers.engine.serving.log_lines import log_as_json
from workers.engine.serving.messages import (
    AbortRequest,
    AddRequest,
    Command,
    DropAdapter,
    EngineEvents,
    PlanResidency,
    PrefetchAdapter,
    Ready,
    Start,
    Started,
    Stop,
    TokenDelta,
)
from workers.engine.serving.step_board import Phase, StepBoard

_LOADING_POLL_S = 0.01
"""How often an idle engine looks whether a prefetched adapter has arrived."""


_MAX_COMMANDS_PER_STEP = 64
"""A flood of requests is taken in over several steps, so that it does not hold up those being served."""


def main(file: int, log_fields: str, loader_child: LoaderChild | None = None) -> None:
    """Serve the connection that was inherited from the parent; its first message says what to build.

    `log_fields` is JSON, with which the log is JSON lines; empty leaves it as it is. `loader_child` is a
    loader that has been started for this engine.
    """
    collect_garbage()
    if log_fields:
        log_as_json(json.loads(log_fields))
    with Connection(file) as connection:
        try:
            start: Start = connection.recv()
        except (EOFError, OSError):
            return  # the parent is gone already
        board = StepBoard(start.board_file, start.board_bytes)
        os.close(start.board_file)
        serve(connection, start.config, board, loader_child)


def serve(
    connection: Connection, config: EngineConfig, board: StepBoard, loader_child: LoaderChild | None = None
) -> None:
    """Run the engine until it is told to stop or its parent is gone."""
    engine = _build(connection, config, board, loader_child)
    if engine is None:
        return
    try:
        EngineServer(engine, connection, board).run()
    except (EOFError, OSError):
        return  # the parent closed the connection: nobody is left to serve
    except Exception as error:
        if is_device_failure(error):
            leave_lost_device(error, connection, config, engine.info)
        raise
    finally:
        engine.close()


def _build(
    connection: Connection, config: EngineConfig, board: StepBoard, loader_child: LoaderChild | None
) -> LLMEngine | None:
    try:
        engine = LLMEngine(
            config, loader_child=loader_child, on_compiling=lambda: board.enter(Phase.COMPILING)
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        connection.send(start_failure(error, config))
        return None
    connection.send(Ready(engine.info))
    return engine


class EngineServer:
    """Drives one engine by the commands that arrive on a connection."""

    def __init__(self, engine: LLMEngine, connection: Connection, board: StepBoard | None = None) -> None:
        """What it does it tells on the `board`, if anybody looks at one."""
        self._board = StepBoard() if board is None else board
        self._engine = engine
        self._connection = connection
        self._started: list[Started] = []
        self._finished: list[RequestOutput] = []
        self._deltas: list[TokenDelta] = []
        self._is_stopped = False
        engine.on_started = self._tell_started
        engine.on_launch = self._tell_launch
        engine.on_settled = self._board.settle
        self._obey: dict[type[Any], Callable[[Any], None]] = {
            AddRequest: self._add,
            AbortRequest: self._abort,
            PrefetchAdapter: self._prefetch,
            DropAdapter: self._drop,
            PlanResidency: self._plan,
            Stop: self._stop,
        }

    def run(self) -> None:
        """Serve until told to stop; raises EOFError when the other side is gone."""
        while True:
            self._obey_commands()
            if self._is_stopped:
                return
            if self._engine.has_unfinished_requests():
                self._take(self._engine.step())
                self._board.tick()
            self._send_events()

    def _tell_launch(self, launch: Launch) -> None:
        self._board.enter(
            Phase.STEPPING, launch.request_ids, num_tokens=launch.num_tokens, predicted_s=launch.predicted_s
        )

    def _tell_started(self, request_ids: tuple[str, ...]) -> None:
        """Tell at once: the first step of a long prompt takes a while."""
        self._started += map(Started, request_ids)
        self._send_events()

    def _take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.finished:
                self._finished.append(output)
                continue
            for part in output.outputs:
                delta = TokenDelta(output.request_id, part.index, part.text, len(part.token_ids))
                self._deltas.append(delta)

    def _obey_commands(self) -> None:
        timeout_s = self._patience_s()
        if timeout_s != 0.0:
            self._board.enter(Phase.WAITING)
        num_taken = 0
        while num_taken < _MAX_COMMANDS_PER_STEP:
            if self._is_stopped or not self._connection.poll(timeout_s):
                return
            commands: tuple[Command, ...] = self._connection.recv()
            for command in commands:
                self._board.take(command.request_id if isinstance(command, AddRequest) else None)
                self._obey[type(command)](command)
            num_taken += len(commands)
            timeout_s = 0.0

    def _patience_s(self) -> float | None:
        """Return how long to wait for a command: not at all beside work, forever without any."""
        if self._engine.has_unfinished_requests():
            return 0.0
        return _LOADING_POLL_S if self._engine.is_loading_adapters else None

    def _send_events(self) -> None:
        engine = self._engine
        residency = tuple(engine.drain_residency_changes())
        if not (self._started or residency or self._finished or self._deltas):
            return
        started, self._started = tuple(self._started), []
        finished, self._finished = tuple(self._finished), []
        deltas, self._deltas = tuple(self._deltas), []
        capacity = engine.capacity()
        events = EngineEvents(
            started=started,
            finished=finished,
            residency=residency,
            epoch=engine.residency_epoch,
            free_seqs=capacity.free_seqs,
            free_kv_blocks=capacity.free_kv_blocks,
            busy_ms=capacity.busy_ms,
            waiting=capacity.waiting,
            deltas=deltas,
        )
        self._connection.send(events)

    def _add(self, command: AddRequest) -> None:
        try:
            prompt = command.messages if command.prompt is None else command.prompt
            self._engine.add_request(
                command.request_id,
                prompt,  # type: ignore[arg-type]  # whatever it is, the engine says what is wrong with it
                command.params,
                command.lora,
                cache_salt=command.cache_salt,
            )
        except EngineError as error:
            self._finished.append(_refused(command, error.code, str(error), retryable=error.retryable))
        except Exception as error:
            if is_device_failure(error):
                raise
            # A bad command must not end the other requests.
            reason = f"{type(error).__name__}: {error}"
            self._finished.append(_refused(command, "invalid_command", reason, retryable=False))

    def _abort(self, command: AbortRequest) -> None:
        output = self._engine.abort_request(command.request_id)
        if output is not None:
            self._finished.append(output)

    def _prefetch(self, command: PrefetchAdapter) -> None:
        with suppress(ConfigError):  # there is no LoRA: the requests in flight matter more
            self._engine.prefetch(command.lora)

    def _drop(self, command: DropAdapter) -> None:
        with suppress(AdapterInUse, ConfigError):  # a wrong guess of the sender
            self._engine.remove_lora(command.lora.lora_int_id)

    def _plan(self, command: PlanResidency) -> None:
        with suppress(ConfigError):
            self._engine.plan_residency(command.wanted, command.drop)

    def _stop(self, _: Stop) -> None:
        self._is_stopped = True


def _refused(command: AddRequest, code: str, message: str, *, retryable: bool) -> RequestOutput:
    now_s = time.monotonic()
    return RequestOutput(
        request_id=command.request_id,
        prompt=command.prompt if isinstance(command.prompt, str) else None,
        prompt_token_ids=[],
        outputs=[CompletionOutput(index=0, text="", token_ids=[], finish_reason="error")],
        finished=True,
        lora_request=command.lora,
        metrics=RequestMetrics(
            arrival_time_s=now_s,
            started_time_s=None,
            first_token_time_s=None,
            finished_time_s=now_s,
            num_prompt_tokens=0,
            num_completion_tokens=0,
            device_ms=0.0,
            num_preemptions=0,
        ),
        error=RequestFailure(code, message, retryable),
    )
