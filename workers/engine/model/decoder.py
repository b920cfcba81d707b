"""The decoder of every family: one mixed forward pass over base rows and adapter rows."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kernels.lora.segments import Segments
from kernels.lora.tables import LoRAModule
from workers.engine.core.step_input import ForwardInput
from workers.engine.kv.kv_cache import KVCache
from workers.engine.model.comm import Alone, Comm
from workers.engine.model.config import ModelConfig
from workers.engine.model.layers.adapted_linear import AdaptedLinear, Delta, whole
from workers.engine.model.layers.attention_backend import AttentionBackend
from workers.engine.model.layers.decoder_layer import LayerParts
from workers.engine.model.layers.expert_linear import expert_linear
from workers.engine.model.layers.layer_builders import build_layer
from workers.engine.model.layers.ops import RotaryTable, look_up_shard
from workers.engine.model.layers.side_stream import side_stream_of
from workers.engine.model.weights import DecoderWeights, LayerWeights


class AdaptedVocabulary(Protocol):
    """What the resident adapters do to embedding and head."""

    def adapt_embedded(
        self,
        embedded: Tensor,  # [num_rows, hidden_size], changed in place
        token_ids: Tensor,  # [num_rows] int64
        segments: Segments,
    ) -> None:
        """Change the rows of adapters that change the embedding."""
        ...

    def replaces_embedded(self, segments: Segments) -> bool:
        """Whether some row's adapter has an embedding of its own."""
        ...

    def adapt_logits(
        self,
        logits: Tensor,  # [num_rows, vocab_size] float32, changed in place
        hidden: Tensor,  # [num_rows, hidden_size], what the head was given
        segments: Segments,
    ) -> None:
        """Change the logits of adapters that change the head."""
        ...


class ResidentAdapters(Protocol):
    """Where the forward pass finds the LoRA matrices of the resident adapters."""

    def packed(self, layer: int, module: str) -> LoRAModule:
        """Return every slot's matrices for one packed module of one layer."""
        ...

    @property
    def vocabulary(self) -> AdaptedVocabulary | None:
        """Return what the slots' adapters do to embedding and head; None if they cannot."""
        ...


class HiddenStates(NamedTuple):
    """What the layers made of a step's rows; the head adds both before it norms them."""

    residual: Tensor  # [num_tokens, hidden_size]
    delta: Tensor | None  # [num_tokens, hidden_size]; None: the model has no layers


class Decoder:
    """Computes hidden states for a step's rows, keeping keys and values in the cache, and logits for some."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        *,
        max_model_len: int,
        adapters: ResidentAdapters | None,
        attention: AttentionBackend,
        comm: Comm | None = None,
    ) -> None:
        """`comm` joins the ranks of a model whose weights were cut; None: the weights are whole."""
        self._config = config
        self._comm: Comm = comm or Alone()
        self._vocabulary = None if adapters is None else adapters.vocabulary
        self._weights = weights
        self._add_rms_norm = weights.kernels.add_rms_norm
        dtype, device = weights.embedding.dtype, weights.embedding.device
        ropes = [(kind.rope, kind.rotates) for kind in config.layers]
        distinct = list(dict.fromkeys(ropes))
        self._rotary = [
            RotaryTable(rope, rotates=rotates, max_positions=max_model_len, dtype=dtype, device=device)
            for rope, rotates in distinct
        ]
        self._side = side_stream_of(device)
        self._layers = [
            build_layer(self._parts(index, layer, distinct.index(ropes[index]), adapters, attention))
            for index, layer in enumerate(weights.layers)
        ]
        self._embedding_scale = _embedding_scale(config, dtype)

    def forward(self, step: ForwardInput, cache: KVCache) -> HiddenStates:
        """Run the layers over all rows of a step."""
        residual = self._embed(step)
        rotations = [table.rows(step.positions) for table in self._rotary]
        delta: Delta | None = None
        for layer, kv in zip(self._layers, cache.layers, strict=True):
            delta = layer(residual, delta, rotations, step, kv)
        return HiddenStates(residual, None if delta is None else whole(delta))

    def replaces_embedded(self, step: ForwardInput) -> bool:
        """Whether some row's adapter has an embedding of its own, which is launched run by run."""
        if step.segments is None or self._vocabulary is None:
            return False
        return self._vocabulary.replaces_embedded(step.segments)

    def logits(
        self,
        hidden: HiddenStates,
        rows: Tensor,  # [num_rows] int64
        segments: Segments | None,  # of `rows`; None: none of them has an adapter
    ) -> Tensor:  # [num_rows, vocab_size] float32
        """Return what the head makes of some rows."""
        residual = hidden.residual.index_select(0, rows)
        delta = None if hidden.delta is None else hidden.delta.index_select(0, rows)
        normed = self._add_rms_norm(residual, delta, self._weights.final_norm, self._config.rms_norm_eps)
        logits = self._comm.join(self._weights.head(normed))
        if segments is not None and self._vocabulary is not None:
            self._vocabulary.adapt_logits(logits, normed, segments)
        if self._config.logits_scaling is not None:
            logits.div_(self._config.logits_scaling)
        softcap = self._config.final_logit_softcapping
        if softcap is None:
            return logits
        if not self._weights.kernels.batch_invariant:
            return _capped(logits, softcap)
        # MKL's tanh may treat a row otherwise that lies elsewhere; a copy of one row always lies alike.
        return torch.cat([_capped(row.clone(), softcap) for row in logits.unsqueeze(1).unbind()])

    def _parts(
        self,
        index: int,
        weights: LayerWeights,
        rotary: int,
        adapters: ResidentAdapters | None,
        attention: AttentionBackend,
    ) -> LayerParts:
        def slots(name: str) -> LoRAModule | None:
            return None if adapters is None else adapters.packed(index, name)

        kernels = self._weights.kernels
        add = kernels.lora_add
        return LayerParts(
            self._config,
            index,
            rotary,
            weights,
            linears={
                name: AdaptedLinear(one, slots(name), add, self._side)
                for name, one in weights.linears.items()
            },
            experts={
                name: expert_linear(some, slots(name), add, self._side)
                for name, some in weights.experts.items()
            },
            kernels=kernels,
            backend=attention,
            comm=self._comm,
        )

    def _embed(self, step: ForwardInput) -> Tensor:
        table = self._weights.embedding
        if table.shape[0] == self._config.vocab_size:
            embedded = table[step.token_ids]
        else:
            first_id = self._comm.tp_rank * table.shape[0]
            embedded = self._comm.add(look_up_shard(table, step.token_ids, first_id))
        if step.segments is not None and self._vocabulary is not None:
            self._vocabulary.adapt_embedded(embedded, step.token_ids, step.segments)
        return embedded if self._embedding_scale is None else embedded.mul_(self._embedding_scale)


def _capped(logits: Tensor, softcap: float) -> Tensor:  # in place
    return logits.div_(softcap).tanh_().mul_(softcap)


def _embedding_scale(config: ModelConfig, dtype: torch.dtype) -> float | None:
    if config.family.scales_embedding:
        # Rounded to the model's dtype before it multiplies, as transformers does.
        return torch.tensor(config.hidden_size**0.5, dtype=dtype).item()
    return config.embedding_multiplier
