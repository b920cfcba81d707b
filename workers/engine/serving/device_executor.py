"""Runs steps on a device that works while the host goes on: one copy there, launches, one copy back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.sampling.draw import Draw
from workers.engine.core.step_input import ForwardInput, SamplingInput, StepHalf, StepOutput
from workers.engine.core.tensor_pack import TensorPack, unpack
from workers.engine.kv.kv_cache import KVCache
from workers.engine.model.decoder import Decoder, HiddenStates
from workers.engine.serving.executor import InFlightStep, StepResults, sample_rows
from workers.engine.serving.step_buffers import DeviceBuffer, HostBuffers, StepBuffers
from workers.engine.serving.step_graphs import StepGraphs


class DeviceExecutor:
    """The decoder and its cache on a GPU; on CPU tensors it does the same, to be tested without one.

    Attention reads no place that its sequence has not written, so that blocks need not be cleared.
    """

    look_ahead = 1

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        draw: Draw,
        device: torch.device,
        *,
        graphs: StepGraphs | None = None,
    ) -> None:
        """`graphs` replays the steps that were captured, None if every step is launched kernel by kernel."""
        self._decoder = decoder
        self._cache = cache
        self._draw = draw
        self._device = device
        self._graphs = graphs
        pinned = device.type == "cuda"
        self._forward_half = _Sender(device, pinned=pinned)
        self._sampling_half = _Sender(device, pinned=pinned)
        self._staging = DeviceBuffer(device)
        self._home = HostBuffers(pinned=pinned)
        self._latest: Tensor | None = None  # [num_rows] int64, what the step before chooses

    @property
    def num_replayed_steps(self) -> int:
        """Steps whose forward pass was launched as one captured graph."""
        return 0 if self._graphs is None else self._graphs.num_replayed

    def forward(self, step: ForwardInput) -> HiddenStates:
        """Launch the layers."""
        with torch.inference_mode():
            captured = None if self._graphs is None else self._graphs.find(step, self._decoder)
            buffer = None if captured is None else captured.buffer
            there = self._forward_half.send(replace(step, fresh_blocks=None), buffer)
            assert isinstance(there, ForwardInput)
            if there.carried is not None:
                assert self._latest is not None, "a step goes on with tokens of one that chose none"
                carried = self._latest.index_select(0, there.carried.places)
                there.token_ids.index_copy_(0, there.carried.rows, carried)
            if captured is not None:
                return captured.replay(there)
            return self._decoder.forward(there, self._cache)

    def sample(self, step: InFlightStep, sampling: SamplingInput) -> _SampledStep:
        """Launch the head, the choice of tokens, and their copy to the host."""
        with torch.inference_mode():
            there = self._sampling_half.send(sampling)
            assert isinstance(there, SamplingInput)
            results = sample_rows(self._decoder, step, there, self._draw)
            self._latest = None if results.chosen is None else results.chosen.token_ids
            return self._send_home(results)

    def _send_home(self, results: StepResults) -> _SampledStep:
        pack = TensorPack(results)
        staged = self._staging.bytes(pack.num_bytes)
        pack.write(staged)
        home = self._home.turn(pack.num_bytes)
        home.copy_(staged, non_blocking=True)
        event: Any = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return _SampledStep(pack.skeleton, home, event)


class _SampledStep(NamedTuple):
    """Results on their way to the host."""

    skeleton: bytes
    home: Tensor  # [num_bytes] uint8
    event: Any  # torch.cuda.Event; None: they are there

    def wait(self) -> StepOutput:
        """Return what the step yields; the loop's only wait for the device."""
        if self.event is not None:
            self.event.synchronize()
        results = unpack(self.skeleton, self.home)
        assert isinstance(results, StepResults)
        return results.wait()


class _Sender:
    """Copies halves of steps to the device, one after the other into the same place.

    The device reads one before the next is copied there, for it does things in order.
    """

    def __init__(self, device: torch.device, *, pinned: bool) -> None:
        self._host = StepBuffers(pinned=pinned)
        self._buffer = DeviceBuffer(device)

    def send(self, half: StepHalf, buffer: Tensor | None = None) -> StepHalf:
        """Return the half with its tensors on the device, in `buffer` if one is given."""
        packed = self._host.pack(half)
        return packed.to(self._buffer.bytes(packed.buffer.numel()) if buffer is None else buffer).unpack()
