"""One rank of a model cut in two: rank 0 describes steps, both run them, and rank 0 prints the logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from kernels.lora.segments import SlotScale
from kernels.lora.tables import LoRAModule, LoRATable, PackedShape
from kernels.registry import build
from workers.engine import SamplingParams
from workers.engine.core.sequence import SequenceState
from workers.engine.core.step_input import ForwardInput, SamplingInput, StepHalf
from workers.engine.kv.kv_cache import KVCache
from workers.engine.lora import describe_base
from workers.engine.lora.files.validate import check_adapter
from workers.engine.lora.tables.adapter_weights import pack_adapter
from workers.engine.lora.tables.packed_slots import PackedAdapter, adapter_lora, module_name
from workers.engine.model.config import load_model_config
from workers.engine.model.decoder import Decoder
from workers.engine.model.layers.attention_backend import choose_attention
from workers.engine.model.layout import layer_modules
from workers.engine.model.weights import load_weights
from workers.engine.parallel.adapters import cut_adapter
from workers.engine.parallel.process_group import ProcessGroupComm
from workers.engine.parallel.shard import Shard
from workers.engine.parallel.weights import cut_config, cut_weights
from workers.engine.scheduling.batching import Schedule, ScheduledRows
from workers.engine.scheduling.step_builder import StepBuilder
from workers.engine.serving.step_buffers import PackedStep, StepBuffers

PROMPTS = ([5, 9, 11, 6, 4, 8], [7, 3, 12], [10, 4])
"""The first has the adapter, the second twice as strong, the third is the base's."""
SCALES = ((SlotScale(0),), (SlotScale(0, 2.0),), ())


class Tables:
    """One adapter in slot 0 of every module."""

    vocabulary = None

    def __init__(self, adapter: PackedAdapter, config, shard: Shard) -> None:
        shapes = {}
        for layer in range(config.num_layers):
            for packed in layer_modules(config, layer):
                axis = packed.parts[0].shard
                shapes[module_name(layer, packed.name)] = PackedShape(
                    packed.parts[0].in_features // (shard.tp_size if axis == "row" else 1),
                    tuple(
                        part.out_features // (shard.tp_size if axis == "column" else 1)
                        for part in packed.parts
                    ),
                    torch.float32,
                )
        self._table = LoRATable(shapes, num_slots=1)
        self._table.point(0, self._table.describe(adapter_lora(adapter)))

    def packed(self, layer: int, module: str) -> LoRAModule:
        return self._table.module(module_name(layer, module))


ATTENTION = choose_attention(build("cpu", torch.float32), 16)


def describe_steps(config, windows) -> list[tuple[ForwardInput, SamplingInput]]:
    """Build a prefill of all prompts and two decode steps; the answers do not matter, so tokens are given."""
    builder = StepBuilder(
        block_size=16,
        num_kv_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        dtype=torch.float32,
        gathers_kv=ATTENTION.gathers,
        windows=windows,
    )
    sequences = [
        SequenceState(
            str(at),
            None,
            prompt,
            SamplingParams(temperature=0.0),
            None,
            seed=0,
            max_total_tokens=20,
            stop_checker=None,
            arrival_time_s=0.0,
        )
        for at, prompt in enumerate(PROMPTS)
    ]
    for at, (sequence, scales) in enumerate(zip(sequences, SCALES, strict=True)):
        sequence.block_table = [at + 1]
        sequence.slots = scales
    steps = []
    for _ in range(3):
        rows = [ScheduledRows(sequence, sequence.num_uncomputed_tokens) for sequence in sequences]
        built = builder.build(Schedule(rows, [], []))
        steps.append((built.forward, builder.build_sampling(built.spans).sampling))
        for at, sequence in enumerate(sequences):
            sequence.num_computed_tokens = sequence.num_tokens
            sequence.token_ids.append(4 + at)
    return steps


def share(half: StepHalf | None, buffers: StepBuffers) -> StepHalf:
    """Send half of rank 0's step to every rank, as bytes."""
    packed = None if half is None else buffers.pack(half)
    header = [None if packed is None else (packed.skeleton, packed.buffer.numel())]
    dist.broadcast_object_list(header)
    assert header[0] is not None
    skeleton, num_bytes = header[0]
    buffer = torch.empty(num_bytes, dtype=torch.uint8) if packed is None else packed.buffer
    dist.broadcast(buffer, src=0)
    return PackedStep(skeleton, buffer).unpack()


def main(base: str, adapter: str, meeting: str, rank: str, size: str) -> None:
    """Run the steps on one rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(size))
    world = dist.group.WORLD
    assert world is not None
    shard, whole = Shard(int(rank), int(size)), load_model_config(Path(base))
    description = describe_base(base)
    checked = check_adapter(adapter, base=description, max_rank=64)
    packed = pack_adapter(checked, shapes=description.shapes, layout=description.layout, dtype=torch.float32)
    config = cut_config(whole, shard)
    decoder = Decoder(
        config,
        cut_weights(load_weights(Path(base), whole, torch.float32), whole, shard),
        max_model_len=64,
        adapters=Tables(cut_adapter(packed.modules, whole, shard), whole, shard),
        attention=ATTENTION,
        comm=ProcessGroupComm(world),
    )
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=4,
        num_kv_heads=config.num_kv_heads,
        block_size=16,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    buffers = StepBuffers(), StepBuffers()
    steps = describe_steps(config, config.windows) if shard.tp_rank == 0 else [(None, None)] * 3
    logits = []
    with torch.inference_mode():
        for forward, asked in steps:
            step, sampling = share(forward, buffers[0]), share(asked, buffers[1])
            assert isinstance(step, ForwardInput)
            assert isinstance(sampling, SamplingInput)
            hidden = decoder.forward(step, cache)
            rows = decoder.logits(hidden, sampling.rows, sampling.segments)
            logits.append(rows[: sampling.num_rows].tolist())
    if shard.tp_rank == 0:
        print(json.dumps(logits))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
