"""The shapes that kernels are timed at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.gpu.device import Device


@dataclass(frozen=True, slots=True)
class Shapes:
    """A model and the batches it serves."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    batches: tuple[int, ...]
    adapter_counts: tuple[int, ...]
    ranks: tuple[int, ...]
    contexts: tuple[int, ...]  # the first is the one that a step is put together from
    max_context: int  # as wide as block tables are
    prompt: int

    @property
    def modules(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Return input width and slices of the four packed linear layers."""
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "qkv": (self.hidden_size, (heads, kv, kv)),
            "o": (heads, (self.hidden_size,)),
            "gate_up": (self.hidden_size, (self.intermediate_size,) * 2),
            "down": (self.intermediate_size, (self.hidden_size,)),
        }

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one layer's keys and values of one token, in bfloat16."""
        return 4 * self.num_kv_heads * self.head_dim

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's linear layers, in bfloat16."""
        return sum(2 * width * sum(slices) for width, slices in self.modules.values())

    def step_bytes(self, batch: int, context: int, bytes_per_weight: float = 2.0) -> int:
        """Bytes that a decode step of the base reads at least: layers, keys and values, and the head.

        `bytes_per_weight` is that of the layers.
        """
        weights = int(self.layer_bytes * bytes_per_weight / 2)
        layers = (weights + batch * context * self.kv_bytes_per_token) * self.num_layers
        return layers + 2 * self.vocab_size * self.hidden_size

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of an adapter of all linear layers, in bfloat16."""
        a_and_b = sum(len(slices) * width + sum(slices) for width, slices in self.modules.values())
        return 2 * rank * a_and_b * self.num_layers


LLAMA_8B = Shapes(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
    batches=(1, 8, 32, 64),
    adapter_counts=(1, 8, 32),
    ranks=(16, 64),
    contexts=(512, 2048, 8192),
    max_context=8192,
    prompt=2048,
)
TINY = Shapes(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=48,
    vocab_size=64,
    batches=(1, 2),
    adapter_counts=(1, 2),
    ranks=(4,),
    contexts=(16,),
    max_context=32,
    prompt=4,
)

LLAMA_1B = replace(
    LLAMA_8B, num_layers=16, hidden_size=2048, num_heads=32, head_dim=64, intermediate_size=8192
)
TINY_ENGINE = replace(TINY, num_layers=1, vocab_size=368)  # as many as the tiny base's tokenizer has


def engine_shapes_of(device: Device) -> Shapes:
    """Return what engines serve: Llama-3-8B, or in a rehearsal tiny shapes."""
    return TINY_ENGINE if device.is_rehearsal else LLAMA_8B


def shapes_of(device: Device) -> Shapes:
    """Return Llama-3-8B, or tiny shapes in a rehearsal."""
    return TINY if device.is_rehearsal else LLAMA_8B
