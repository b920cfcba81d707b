"""Captured steps: the layers over one of the shapes that recur are launched as one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.lora.segments import Pass, Segments
from workers.engine.core.step_input import ForwardInput, StepShape
from workers.engine.kv.kv_cache import SCRATCH_BLOCK, KVCache
from workers.engine.model.decoder import Decoder, HiddenStates
from workers.engine.serving.step_buffers import StepBuffers


class CapturedStep:
    """One shape's graph, and the buffer that it reads its step from."""

    def __init__(self, buffer: Tensor, step: ForwardInput, graph: Any, hidden: HiddenStates) -> None:
        self.buffer = buffer  # [num_bytes] uint8
        self._addresses = _addresses(step)
        self._graph = graph
        self._hidden = hidden

    def replay(self, step: ForwardInput) -> HiddenStates:
        """Launch the layers over a step that lies in the buffer; its results stay until the next replay."""
        assert _addresses(step) == self._addresses, "the step lies elsewhere than the captured one did"
        self._graph.replay()
        return self._hidden


class StepGraphs:
    """Captures steps and finds the one that serves; what was not captured is launched kernel by kernel."""

    def __init__(self, shapes: Iterable[StepShape]) -> None:
        """A shape without tiles is captured without adapters."""
        self._shapes = tuple(shapes)
        self._captured: dict[StepShape, CapturedStep] = {}
        self._pool: Any = None
        self.num_replayed = self.num_eager = 0
        self.capture_s = 0.0

    def capture(self, decoder: Decoder, cache: KVCache, device: torch.device) -> None:
        """Capture every shape against this cache, whose addresses the graphs keep."""
        began_s = time.monotonic()
        with torch.inference_mode():
            for shape in self._shapes:
                self._captured[shape] = self._capture(shape, decoder, cache, device)
        self.capture_s = time.monotonic() - began_s

    def find(self, step: ForwardInput, decoder: Decoder) -> CapturedStep | None:
        """Return the graph that serves a step; None for one that is launched kernel by kernel. Both count."""
        captured = None
        if step.shape is not None and _is_plain(step, step.shape) and not decoder.replaces_embedded(step):
            captured = self._captured.get(step.shape)
        if captured is None:
            self.num_eager += 1
        else:
            self.num_replayed += 1
        return captured

    def _capture(
        self, shape: StepShape, decoder: Decoder, cache: KVCache, device: torch.device
    ) -> CapturedStep:
        packed = StepBuffers(pinned=True).pack(idle_step(shape, has_adapters=shape.num_tiles > 0))
        buffer = torch.zeros(packed.buffer.numel() + _carried_bytes(shape), dtype=torch.uint8, device=device)
        step = packed.to(buffer).unpack()
        assert isinstance(step, ForwardInput)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            decoder.forward(step, cache)  # compiles what is not compiled yet
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = decoder.forward(step, cache)
        self._pool = self._pool or graph.pool()
        return CapturedStep(buffer, step, graph, hidden)


def idle_step(shape: StepShape, *, has_adapters: bool) -> ForwardInput:
    """Return a step of a shape in which no row is anybody's."""
    num_tokens = shape.num_tokens
    segments = None
    if has_adapters:
        scales = np.ones(num_tokens, dtype=np.float32)
        idle = Pass.of((), scales, block_rows=shape.tile_rows, num_tiles=shape.num_tiles)
        segments = Segments(num_tokens, (idle,))
    tables = np.full((shape.num_seqs, shape.max_blocks), SCRATCH_BLOCK, dtype=np.int32)
    return ForwardInput(
        num_tokens=num_tokens,
        token_ids=torch.zeros(num_tokens, dtype=torch.int64),
        positions=torch.zeros(num_tokens, dtype=torch.int64),
        kv_write_rows=torch.empty(0, dtype=torch.int64),
        sequence_rows=torch.zeros(shape.num_seqs, 3, dtype=torch.int32),
        block_tables=torch.from_numpy(tables),
        fresh_blocks=None,
        groups=(),
        segments=segments,
        shape=shape,
    )


def on_device(step: ForwardInput, device: torch.device) -> ForwardInput:
    """Return a copy of a step there."""
    packed = StepBuffers().pack(step)
    there = packed.to(torch.empty_like(packed.buffer, device=device)).unpack()
    assert isinstance(there, ForwardInput)
    return there


def _is_plain(step: ForwardInput, shape: StepShape) -> bool:
    """Whether a step has no more tiles and passes than its shape."""
    passes = () if step.segments is None else step.segments.passes
    return all(one.table.shape[0] == shape.num_tiles for one in passes) and len(passes) <= 1


def _carried_bytes(shape: StepShape) -> int:
    """Return what the tokens carried over take at the most, behind everything else."""
    return 2 * (8 * shape.num_tokens + 64)


def _addresses(step: ForwardInput) -> tuple[int, ...]:
    tensors = [step.token_ids, step.positions, step.sequence_rows, step.block_tables]
    for one in () if step.segments is None else step.segments.passes:
        tensors += [one.table, one.scales] + ([] if one.row_slots is None else [one.row_slots])
    return tuple(tensor.data_ptr() for tensor in tensors)
