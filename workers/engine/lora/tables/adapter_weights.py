"""An adapter in the kernels' layout: sub-modules packed, scaling folded into B, ranks rounded up to 16."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.tables import NUM_DORA_TERMS, RANK_MULTIPLE, LoRASlice, PackedLoRA, Slice
from workers.engine.core.errors import AdapterFileError, RequestError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.files.base import EMBEDDING, HEAD, ModuleShape
from workers.engine.lora.files.kv_effect import changes_kv
from workers.engine.lora.files.peft_file import LoRAPair
from workers.engine.lora.files.validate import CheckedAdapter
from workers.engine.lora.tables.packed_slots import PackedAdapter, PackedKey, PackedLayout


@dataclass(frozen=True, slots=True)
class EmbeddingLoRA:
    """LoRA of the embedding: a token's row of A, times B."""

    a_t: Tensor  # [vocab_size, rank]
    b_t: Tensor  # [rank, hidden_size], scaling folded in
    dora: Tensor | None  # [NUM_DORA_TERMS, hidden_size] float32

    @property
    def packed(self) -> PackedLoRA:
        """The same as the table of LoRA takes it."""
        rank, hidden_size = self.b_t.shape
        part = LoRASlice(Slice(0, hidden_size), Slice(0, rank), self.b_t, dora=self.dora)
        return PackedLoRA(self.a_t, (part,))


@dataclass(frozen=True, slots=True)
class VocabularyWeights:
    """What an adapter does to embedding and head; None if it leaves them alone."""

    embedding: EmbeddingLoRA | None = None
    head: PackedLoRA | None = None  # float32, as the logits are
    saved_embedding: Tensor | None = None  # [vocab_size, hidden_size], in place of the base's
    saved_head: Tensor | None = None  # the same

    @property
    def packed(self) -> Mapping[Hashable, PackedLoRA]:
        """Its LoRA by the names of the table."""
        packed: dict[Hashable, PackedLoRA] = {}
        if self.embedding is not None:
            packed[EMBEDDING] = self.embedding.packed
        if self.head is not None:
            packed[HEAD] = self.head
        return packed

    @property
    def lora_bytes(self) -> int:
        """The bytes of its LoRA."""
        tensors = (
            () if self.embedding is None else (self.embedding.a_t, self.embedding.b_t, self.embedding.dora)
        )
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        return held + (0 if self.head is None else self.head.num_bytes)

    @property
    def saved_bytes(self) -> int:
        """The bytes of its whole weights, a tied one counted once."""
        saved = {
            id(tensor): tensor for tensor in (self.saved_embedding, self.saved_head) if tensor is not None
        }
        return sum(tensor.nbytes for tensor in saved.values())


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One revision's weights, ready to be pointed at, but for DoRA's terms that only the base can give."""

    digest: str
    rank: int
    modules: PackedAdapter
    unmixable: str | None = None  # why it is served alone only, never in a LoRAMix
    changes_kv: bool = True
    """Whether it can change keys or values; if not, its requests share cached prefixes with the base."""
    vocabulary: VocabularyWeights = VocabularyWeights()
    has_dora: bool = False
    warnings: tuple[str, ...] = ()  # what is uncertain about it, such as which base it was trained on

    @property
    def num_bytes(self) -> int:
        """The bytes of its LoRA; whole weights have a budget of their own, see `saved_bytes`."""
        return sum(packed.num_bytes for packed in self.modules.values()) + self.vocabulary.lora_bytes

    @property
    def saved_bytes(self) -> int:
        """The bytes of the whole modules it brings."""
        return self.vocabulary.saved_bytes


def pack_adapter(
    adapter: CheckedAdapter,
    *,
    shapes: Mapping[str, ModuleShape],
    layout: PackedLayout,
    dtype: torch.dtype,
    head_dtype: torch.dtype | None = None,
) -> AdapterWeights:
    """Pack a checked adapter; modules it does not touch are absent.

    `head_dtype` is what the head's kernel reads, None the same as `dtype`: whole heads are kept in that.
    """
    modules: dict[PackedKey, PackedLoRA] = {}
    for key, paths in layout.items():
        if any(path in adapter.pairs for path in paths):
            modules[key] = _pack_module([(path, shapes[path].out_features) for path in paths], adapter, dtype)
    return AdapterWeights(
        adapter.description.digest,
        adapter.description.rank,
        modules,
        unmixable=_unmixable(adapter),
        changes_kv=changes_kv([*adapter.pairs, *adapter.saved], layout),
        vocabulary=_pack_vocabulary(adapter, dtype, head_dtype or dtype),
        has_dora=adapter.config.use_dora,
        warnings=adapter.description.warnings,
    )


def _unmixable(adapter: CheckedAdapter) -> str | None:
    if adapter.config.use_dora:
        return "DoRA scales the base's own weights to the magnitudes that it was trained with (use_dora)"
    if adapter.saved:
        return f"it replaces the whole of {' and '.join(adapter.saved)} (modules_to_save)"
    return None


def _pack_module(
    parts: Sequence[tuple[str, int]],  # path and output width of each
    adapter: CheckedAdapter,
    dtype: torch.dtype,
) -> PackedLoRA:
    stacked_a: list[Tensor] = []
    ranks_of: dict[int, Slice] = {}  # by the trained A, which fused experts share between gate and up
    slices: list[LoRASlice] = []
    rank_start = column = 0
    for path, out_features in parts:
        if pair := adapter.pairs.get(path):
            a, b_t = _layout(path, pair, adapter, dtype)
            if (ranks := ranks_of.get(id(pair.a))) is None:
                ranks = ranks_of[id(pair.a)] = Slice(rank_start, rank_start + a.shape[0])
                stacked_a.append(a)
                rank_start = ranks.end
            bias = None if pair.bias is None else pair.bias.float() * adapter.scaling_of(path)
            dora = _own_dora_terms(pair, a, b_t.T)
            trained = pair.a.shape[0]
            slices.append(LoRASlice(Slice(column, column + out_features), ranks, b_t, bias, dora, trained))
        column += out_features
    return PackedLoRA(torch.cat(stacked_a), tuple(slices))


def _layout(path: str, pair: LoRAPair, adapter: CheckedAdapter, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rank, in_features = pair.a.shape
    padded = -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE
    a = torch.zeros(padded, in_features, dtype=dtype)
    b_t = torch.zeros(padded, pair.b.shape[0], dtype=dtype)
    a[:rank] = pair.a
    # Scaled in float32 and rounded once; in bfloat16 scaling first would round twice.
    b_t[:rank] = (pair.b.float() * adapter.scaling_of(path)).T
    _check_range(path, a, b_t, adapter)
    return a, b_t


def _own_dora_terms(pair: LoRAPair, a: Tensor, b: Tensor) -> Tensor | None:
    """Return DoRA's terms as far as the adapter alone decides them; the base's rows are still 0."""
    if pair.magnitude is None:
        return None
    terms = torch.zeros(NUM_DORA_TERMS, b.shape[0])
    terms[0] = pair.magnitude
    # |B A|^2 of each row from the Gram matrix of A: B A itself would be as large as the base's weight.
    a, b = a.float(), b.float()
    terms[3] = ((b @ (a @ a.T)) * b).sum(dim=1)
    return terms


def _pack_vocabulary(
    adapter: CheckedAdapter, dtype: torch.dtype, head_dtype: torch.dtype
) -> VocabularyWeights:
    embedding, head = adapter.pairs.get(EMBEDDING), adapter.pairs.get(HEAD)
    tensors: dict[tuple[int, torch.dtype], Tensor] = {}  # by the file's tensor, so that tied ones stay one

    def packed(path: str, kept_as: torch.dtype) -> Tensor | None:
        weight = adapter.saved.get(path)
        if weight is None:
            return None
        return tensors.setdefault((id(weight), kept_as), weight.to(kept_as).contiguous())

    return VocabularyWeights(
        embedding=None if embedding is None else _pack_embedding(embedding, adapter, dtype),
        head=None if head is None else _pack_module([(HEAD, head.b.shape[0])], adapter, torch.float32),
        saved_head=packed(HEAD, head_dtype),
        saved_embedding=packed(EMBEDDING, dtype),
    )


def _pack_embedding(pair: LoRAPair, adapter: CheckedAdapter, dtype: torch.dtype) -> EmbeddingLoRA:
    a, b_t = pair.a.to(dtype), (pair.b.float() * adapter.scaling_of(EMBEDDING)).T.to(dtype)
    _check_range(EMBEDDING, a, b_t, adapter)
    return EmbeddingLoRA(a.T.contiguous(), b_t.contiguous(), _own_dora_terms(pair, a, b_t.T))


def _check_range(path: str, a: Tensor, b_t: Tensor, adapter: CheckedAdapter) -> None:
    if not (a.isfinite().all() and b_t.isfinite().all()):
        raise AdapterFileError(
            f"{adapter.label}: the weights of {path}, scaled by {adapter.scaling_of(path):g}, are too "
            f"large for {a.dtype}; correct lora_alpha, or serve the base in float32"
        )


def check_mixable(weights: Sequence[AdapterWeights], loras: Sequence[LoRARequest]) -> None:
    """Raise RequestError for an adapter that must be alone upon its request and is not."""
    if len(loras) < 2:
        return
    for one, lora in zip(weights, loras, strict=True):
        if one.unmixable is not None:
            raise RequestError(
                f"adapter {lora.lora_name!r} cannot be in a LoRAMix: {one.unmixable}; ask for it alone, "
                "with a scale if need be"
            )
