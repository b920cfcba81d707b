"""Whole embeddings and heads, copies of the base's, and tied ones: what is served and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.unit.workers.engine.lora.adapter_writer import (
    BASE,
    HIDDEN,
    VOCAB_SIZE,
    config_of,
    tensors_of,
    write_adapter,
)
from workers.engine.core.errors import AdapterConfigError, AdapterError, AdapterFileError, AdapterShapeError
from workers.engine.lora.files.base import EMBEDDING, HEAD, Vocabulary
from workers.engine.lora.files.validate import check_adapter
from workers.engine.lora.tables.adapter_weights import pack_adapter

PREFIX = "base_model.model."
TIED = replace(BASE, vocabulary=Vocabulary(VOCAB_SIZE, HIDDEN, is_tied=True))


def vocabulary_tensors(*modules: str, vocab_size: int = VOCAB_SIZE) -> dict[str, Tensor]:
    """Whole weights of embedding or head, as PEFT names them."""
    return {f"{PREFIX}{module}.weight": torch.randn(vocab_size, HIDDEN) for module in modules}


def lora_tensors(vocab_size: int = VOCAB_SIZE, rank: int = 8) -> dict[str, Tensor]:
    """LoRA for embedding and head, tied."""
    a, b = torch.randn(rank, vocab_size), torch.randn(HIDDEN, rank)
    return {
        f"{PREFIX}{EMBEDDING}.lora_embedding_A": a,
        f"{PREFIX}{EMBEDDING}.lora_embedding_B": b,
        f"{PREFIX}{HEAD}.lora_A.weight": b.T.contiguous(),
        f"{PREFIX}{HEAD}.lora_B.weight": a.T.contiguous(),
    }


def written(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    return write_adapter(folder, config=config_of(**config), tensors={**tensors_of(), **tensors})


def refused(folder: Path, error: type[AdapterError], match: str, base: Any = BASE) -> None:
    with pytest.raises(error, match=match) as raised:
        check_adapter(folder, base=base, max_rank=64, name="sql")
    assert str(raised.value).startswith(f"adapter 'sql' ({folder}): ")
    assert ";" in str(raised.value), "a remedy follows the semicolon"


TARGETS = ("q_proj", "v_proj", "embed_tokens", "lm_head")


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 1, VOCAB_SIZE + 8])
def test_behaviour_06_lora_of_another_vocabulary_is_refused_with_both_sizes(
    vocab_size: int, tmp_path: Path
) -> None:
    written(tmp_path, lora_tensors(vocab_size), targets=TARGETS)

    refused(tmp_path, AdapterShapeError, rf"lora_B \({vocab_size}, 8\), .* needs \(8, 32\) and \(64, 8\)")


def test_behaviour_06_a_resized_embedding_is_refused_with_both_sizes(tmp_path: Path) -> None:
    written(tmp_path, vocabulary_tensors(EMBEDDING, vocab_size=70), modules_to_save=["embed_tokens"])

    refused(tmp_path, AdapterShapeError, r"is \(70, 32\), the base's \(64, 32\); a resized vocabulary")


def test_embedding_and_head_saved_because_they_were_resized_are_refused_alike(tmp_path: Path) -> None:
    written(tmp_path, vocabulary_tensors(EMBEDDING, HEAD, vocab_size=70))

    refused(tmp_path, AdapterShapeError, r"is \(70, 32\), the base's \(64, 32\)")


def test_a_whole_module_that_modules_to_save_names_must_be_there(tmp_path: Path) -> None:
    written(tmp_path, vocabulary_tensors(EMBEDDING), modules_to_save=["embed_tokens", "lm_head"])

    refused(tmp_path, AdapterFileError, "no lm_head.weight, which modules_to_save names")


def test_lora_on_a_module_that_is_replaced_is_not_targeted(tmp_path: Path) -> None:
    tensors = {**lora_tensors(), **vocabulary_tensors(HEAD)}
    written(tmp_path, tensors, targets=TARGETS, modules_to_save=["lm_head"])

    refused(tmp_path, AdapterFileError, "weights for 'lm_head' .* does not target")


def test_a_base_without_known_vocabulary_takes_no_whole_modules(tmp_path: Path) -> None:
    written(tmp_path, vocabulary_tensors(HEAD), modules_to_save=["lm_head"])

    refused(tmp_path, AdapterConfigError, "of this base cannot be replaced", replace(BASE, vocabulary=None))


def test_copies_of_the_base_are_dropped_where_they_are_the_bases(tiny_llama: Any, tmp_path: Path) -> None:
    base = on_checkpoint(tiny_llama, tmp_path)
    copies = {
        f"{PREFIX}{EMBEDDING}.base_layer.weight": tiny_llama.model.embed_tokens.weight.data.half(),
        f"{PREFIX}{HEAD}.base_layer.weight": tiny_llama.lm_head.weight.data.bfloat16(),
    }
    written(tmp_path / "adapter", {**lora_tensors(), **copies}, targets=TARGETS)

    checked = check_adapter(tmp_path / "adapter", base=base, max_rank=64)

    assert checked.saved == {}
    assert set(checked.description.targets) == set(TARGETS)


@pytest.mark.parametrize("suffix", ["base_layer.weight", "weight"])
def test_a_copy_of_another_base_is_refused(suffix: str, tiny_llama: Any, tmp_path: Path) -> None:
    base = on_checkpoint(tiny_llama, tmp_path)
    other = tiny_llama.lm_head.weight.data.clone()
    other[3, 5] += 0.25
    written(tmp_path / "adapter", {**lora_tensors(), f"{PREFIX}{HEAD}.{suffix}": other}, targets=TARGETS)

    refused(tmp_path / "adapter", AdapterFileError, "carries its base's lm_head, and it is not that of", base)


def test_a_copy_that_cannot_be_compared_is_refused(tiny_llama: Any, tmp_path: Path) -> None:
    base = on_checkpoint(tiny_llama, tmp_path)
    copy = {f"{PREFIX}{HEAD}.base_layer.weight": tiny_llama.lm_head.weight.data}
    written(tmp_path / "adapter", {**lora_tensors(), **copy}, targets=TARGETS)
    (tmp_path / "base" / "model.safetensors").unlink()

    refused(tmp_path / "adapter", AdapterFileError, "cannot be compared with the checkpoint", base)


def test_a_tied_head_is_packed_once(tmp_path: Path) -> None:
    written(
        tmp_path,
        vocabulary_tensors(EMBEDDING),
        modules_to_save=["model.embed_tokens"],
        ensure_weight_tying=True,
    )

    checked = check_adapter(tmp_path, base=TIED, max_rank=64)
    weights = pack_adapter(checked, shapes=TIED.shapes, layout=TIED.layout, dtype=torch.float32)

    assert weights.vocabulary.saved_head is weights.vocabulary.saved_embedding
    assert weights.saved_bytes == VOCAB_SIZE * HIDDEN * 4
    assert weights.unmixable is not None


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    tensors = vocabulary_tensors(EMBEDDING, HEAD)
    written(tmp_path / "whole", tensors, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    untied = {**lora_tensors(), f"{PREFIX}{HEAD}.lora_A.weight": torch.ones(8, HIDDEN)}
    tied_targets = ("q_proj", "v_proj", "embed_tokens")
    written(tmp_path / "lora", untied, targets=tied_targets, ensure_weight_tying=True)

    refused(tmp_path / "whole", AdapterFileError, "its lm_head is not its model.embed_tokens", TIED)
    refused(tmp_path / "lora", AdapterFileError, "is not that of model.embed_tokens transposed", TIED)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("modules", [["embed_tokens", "lm_head"], ["lm_head"], None])
def test_all_that_peft_saves_with_save_embedding_layers_is_read(
    modules: list[str] | None, tiny_llama: Any, tmp_path: Path
) -> None:
    base = on_checkpoint(tiny_llama, tmp_path)
    config = LoraConfig(r=8, target_modules=["q_proj"], modules_to_save=modules, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama, config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 1.0
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)

    saved = check_adapter(tmp_path / "adapter", base=base, max_rank=64).saved

    trained = {EMBEDDING: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    assert [path.rpartition(".")[2] for path in saved] == (modules or [])
    for path, weight in saved.items():
        assert torch.equal(weight, trained[path].modules_to_save["default"].weight)


def test_what_save_embedding_layers_repeats_must_be_the_same(tiny_llama: Any, tmp_path: Path) -> None:
    base = on_checkpoint(tiny_llama, tmp_path)
    whole = vocabulary_tensors(HEAD)
    double = {f"{PREFIX}{HEAD}.modules_to_save.weight": torch.ones(VOCAB_SIZE, HIDDEN)}
    copy = {f"{PREFIX}{HEAD}.original_module.weight": torch.ones(VOCAB_SIZE, HIDDEN)}
    written(tmp_path / "a", {**whole, **double}, modules_to_save=["lm_head"])
    written(tmp_path / "b", {**whole, **copy}, modules_to_save=["lm_head"])

    refused(tmp_path / "a", AdapterFileError, "modules_to_save.weight is not lm_head.weight", base)
    refused(tmp_path / "b", AdapterFileError, "carries its base's lm_head, and it is not that of", base)


def on_checkpoint(model: Any, folder: Path) -> Any:
    """Describe the tiny base with a checkpoint, in which copies of its weights can be looked up."""
    model.save_pretrained(folder / "base")
    return replace(BASE, vocabulary=Vocabulary(VOCAB_SIZE, HIDDEN, False, checkpoint=str(folder / "base")))
