"""How queries meet the cache: read in place by a kernel, or gathered for torch; chosen once, at assembly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.attention.paged_attention import HeadNorms, PagedAttention
from kernels.norms.add_rms_norm import AddRMSNorm
from kernels.registry import Kernels
from workers.engine.core.step_input import ForwardInput
from workers.engine.model.layers.gathered_attention import gathered_attention, store_kv
from workers.engine.model.layers.ops import Rotation, rotate


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """What the attention of one layer looks like."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: int | None  # None: every earlier position is seen
    mask: int  # which of the step's masks has this window
    norms: HeadNorms | None  # of queries and keys, before they are rotated
    sinks: Tensor | None  # [num_heads] float32, in the softmaxes' denominators


class AttentionBackend(Protocol):
    """Stores a step's keys and values and attends to everything cached."""

    @property
    def gathers(self) -> bool:
        """Whether steps must say which blocks to gather (`ForwardInput.groups`)."""
        ...

    def __call__(
        self,
        qkv: Tensor,  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
        rotation: Rotation,
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],  # the layer's keys and values
        heads: HeadLayout,
    ) -> Tensor:  # [num_tokens, num_heads * head_dim]
        """Return what each row's queries attend to."""
        ...


def choose_attention(kernels: Kernels, block_size: int) -> AttentionBackend:
    """Return the back end for these kernels and a cache with such blocks."""
    if kernels.paged_attention is not None and kernels.attends_in_place(block_size):
        return PagedBackend(kernels.paged_attention)
    return GatheredBackend(kernels.add_rms_norm)


class PagedBackend:
    """A kernel reads the cache where it lies."""

    gathers = False

    def __init__(self, paged_attention: PagedAttention) -> None:
        self._paged_attention = paged_attention

    def __call__(
        self,
        qkv: Tensor,
        rotation: Rotation,
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],
        heads: HeadLayout,
    ) -> Tensor:
        """Return what each row's queries attend to; see `AttentionBackend`."""
        return self._paged_attention(
            qkv,
            *kv,
            rotation.cos,
            rotation.sin,
            step.sequence_rows,
            step.block_tables,
            heads.scale,
            window=heads.window,
            softcap=heads.softcap,
            head_norms=heads.norms,
            sinks=heads.sinks,
        )


class GatheredBackend:
    """Blocks are gathered into padded batches for torch's attention."""

    gathers = True

    def __init__(self, add_rms_norm: AddRMSNorm) -> None:
        self._add_rms_norm = add_rms_norm

    def __call__(
        self,
        qkv: Tensor,
        rotation: Rotation,
        step: ForwardInput,
        kv: tuple[Tensor, Tensor],
        heads: HeadLayout,
    ) -> Tensor:
        """Return what each row's queries attend to; see `AttentionBackend`."""
        keys, values = kv
        rows = qkv.view(step.num_tokens, -1, heads.head_dim)
        q, k, v = rows.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), dim=1)
        if (norms := heads.norms) is not None:
            q, k = self._normed(q, norms.q, norms.eps), self._normed(k, norms.k, norms.eps)
        store_kv(rotate(k, rotation), keys, step.kv_write_rows)
        store_kv(v, values, step.kv_write_rows)
        return gathered_attention(
            rotate(q, rotation),
            keys,
            values,
            step.groups,
            mask=heads.mask,
            scale=heads.scale,
            softcap=heads.softcap,
            sinks=heads.sinks,
        )

    def _normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._add_rms_norm(x.reshape(-1, x.shape[-1]), None, weight, eps).view(x.shape)
