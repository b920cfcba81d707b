"""DoRA's share that only the base's weights can give: |W|^2 and W.BA of each row, asked of its own product.

An adapter of rank r costs one product of r rows per module it changes, as much as r tokens of a prompt. |W|^2
is computed once per module, when the first adapter needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear.quantized_linear import AnyLinear
from kernels.lora.tables import PackedLoRA
from workers.engine.lora.tables.adapter_weights import AdapterWeights, EmbeddingLoRA
from workers.engine.lora.tables.packed_slots import PackedKey

_CHUNK_ROWS = 4096
"""Of embedding and head, so that their float32 copies stay small."""


class DoraTerms:
    """Completes the DoRA terms of loaded adapters from the base's weights."""

    def __init__(
        self,
        linear: Callable[[int, str, int | None], AnyLinear],  # by layer, packed module and expert
        embedding: Tensor,  # [vocab_size, hidden_size]
        head: Tensor,  # [vocab_size, hidden_size], the same tensor if they are tied
    ) -> None:
        self._linear = linear
        self._embedding = embedding
        self._head = head
        self._device = embedding.device  # the base's; the adapter's terms stay with it on the host
        self._square_norms: dict[PackedKey, Tensor] = {}

    def complete(self, weights: AdapterWeights) -> AdapterWeights:
        """Return the adapter with all its terms; one without DoRA is returned as it is."""
        if not weights.has_dora:
            return weights
        with torch.inference_mode():
            modules = {key: self._complete_module(key, packed) for key, packed in weights.modules.items()}
            vocabulary = weights.vocabulary
            head, embedding = vocabulary.head, vocabulary.embedding
            vocabulary = replace(
                vocabulary,
                head=None if head is None else self._complete_head(head),
                embedding=None if embedding is None else self._complete_embedding(embedding),
            )
        return replace(weights, modules=modules, vocabulary=vocabulary)

    def _complete_module(self, key: PackedKey, packed: PackedLoRA) -> PackedLoRA:
        linear = self._linear(*key)
        norms = self._square_norms_of(key, linear)
        bias = torch.zeros_like(norms) if linear.bias is None else linear.bias.float()
        products = linear(packed.a.to(self._device)).float() - bias
        return _completed(packed, products.cpu(), norms.cpu(), bias.cpu())

    def _complete_head(self, packed: PackedLoRA) -> PackedLoRA:
        chunks, a = self._head.split(_CHUNK_ROWS), packed.a.to(self._device)
        products = torch.cat([a @ chunk.float().T for chunk in chunks], dim=1).cpu()
        norms = torch.cat([chunk.float().square().sum(dim=1) for chunk in chunks]).cpu()
        return _completed(packed, products, norms, torch.zeros_like(norms))

    def _complete_embedding(self, lora: EmbeddingLoRA) -> EmbeddingLoRA:
        # Its rows, in DoRA's sense, are the columns of the table: a magnitude for each hidden feature.
        assert lora.dora is not None
        whole = lora.a_t.to(self._device)
        products = torch.zeros(lora.a_t.shape[1], self._embedding.shape[1], device=self._device)
        norms = torch.zeros(self._embedding.shape[1], device=self._device)
        for chunk, a_t in zip(self._embedding.split(_CHUNK_ROWS), whole.split(_CHUNK_ROWS), strict=True):
            products += a_t.float().T @ chunk.float()
            norms += chunk.float().square().sum(dim=0)
        products, norms = products.cpu(), norms.cpu()
        return replace(lora, dora=_filled(lora.dora, products, lora.b_t, norms, torch.zeros_like(norms)))

    def _square_norms_of(self, key: PackedKey, linear: AnyLinear) -> Tensor:
        if key not in self._square_norms:
            self._square_norms[key] = linear.dense().float().square().sum(dim=1)
        return self._square_norms[key]


def _completed(
    packed: PackedLoRA,
    products: Tensor,  # [sum of ranks, out_features] float32, A W^T
    norms: Tensor,  # [out_features] float32
    bias: Tensor,  # [out_features] float32
) -> PackedLoRA:
    slices = []
    for part in packed.slices:
        columns, ranks = slice(*part.out), slice(*part.rank)
        assert part.dora is not None
        terms = _filled(part.dora, products[ranks, columns], part.b_t, norms[columns], bias[columns])
        slices.append(part._replace(dora=terms))
    return PackedLoRA(packed.a, tuple(slices))


def _filled(
    dora: Tensor,  # [NUM_DORA_TERMS, out_slice] float32, the base's rows still 0
    products: Tensor,  # [rank, out_slice] float32
    b_t: Tensor,  # [rank, out_slice]
    norms: Tensor,  # [out_slice] float32
    bias: Tensor,  # [out_slice] float32
) -> Tensor:
    cross = 2.0 * (products * b_t.float()).sum(dim=0)
    return torch.stack([dora[0], norms, cross, dora[3], bias])
