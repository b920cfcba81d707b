"""Every refusal names the adapter, the value and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.workers.engine.lora.adapter_writer import BASE, config_of, tensors_of, write_adapter
from workers.engine.core.errors import (
    AdapterBaseMismatch,
    AdapterConfigError,
    AdapterDigestMismatch,
    AdapterError,
    AdapterFileError,
    AdapterMatchesNothing,
    AdapterRankError,
    AdapterShapeError,
)
from workers.engine.lora.files.base import BaseDescription, describe_base
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.files.validate import validate_adapter

TINY = Path(__file__).parents[6] / "examples" / "tiny"
SHIPPED = sorted(folder for folder in (TINY / "adapters").iterdir() if folder.is_dir())


def _refused(folder: Path, error: type[AdapterError], match: str, **options: Any) -> None:
    with pytest.raises(error, match=match) as raised:
        validate_adapter(folder, **{"base": BASE, "max_rank": 16, "name": "sql", **options})
    assert str(raised.value).startswith(f"adapter 'sql' ({folder}): ")
    assert ";" in str(raised.value), "a remedy follows the semicolon"


def test_a_good_adapter_is_described(tmp_path: Path) -> None:
    write_adapter(tmp_path, rank=8, targets=("v_proj", "down_proj"))

    description = validate_adapter(tmp_path, base=BASE, max_rank=8)

    assert description.digest == adapter_digest(tmp_path)
    assert description.rank == 8
    assert description.targets == ("down_proj", "v_proj")
    assert description.num_modules == 4
    assert description.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert description.base_model_name == "someone/tiny-base"


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_every_shipped_adapter_fits_the_shipped_base(folder: Path) -> None:
    base = describe_base(TINY / "base")

    description = validate_adapter(folder, base=base, max_rank=16)

    assert description.base_model_name == base.name
    assert description.targets


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_served(dtype: torch.dtype, tmp_path: Path) -> None:
    write_adapter(tmp_path, tensors=tensors_of(dtype=dtype))

    assert validate_adapter(tmp_path, base=BASE, max_rank=8).rank == 8


def test_shards_are_read_together(tmp_path: Path) -> None:
    halves = list(tensors_of().items())
    write_adapter(tmp_path, tensors=dict(halves[:3]))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model-00001-of-00002.safetensors")
    write_adapter(tmp_path / "rest", tensors=dict(halves[3:]))
    rest = tmp_path / "rest" / "adapter_model.safetensors"
    rest.rename(tmp_path / "adapter_model-00002-of-00002.safetensors")

    assert validate_adapter(tmp_path, base=BASE, max_rank=8).num_modules == 4


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_behaviour_09_truncated_weights_are_refused_with_their_size(size: int, tmp_path: Path) -> None:
    weights = write_adapter(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])

    _refused(tmp_path, AdapterFileError, r"adapter_model.safetensors \(\d+ bytes\) is corrupt or truncated")


@pytest.mark.parametrize("content", [b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{'not json': 1}", b"PK\x03\x04" * 20])
def test_behaviour_09_corrupt_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "adapter_model.safetensors").write_bytes(content)

    _refused(tmp_path, AdapterFileError, "is corrupt or truncated")


@pytest.mark.parametrize("content", ["{", "", "[]", "null", "\x00"])
def test_a_configuration_that_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "adapter_config.json").write_text(content)

    _refused(tmp_path, AdapterConfigError, "adapter_config.json: the file is")


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha", "target_modules"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    config = config_of()
    del config[key]
    write_adapter(tmp_path, config=config)

    _refused(tmp_path, AdapterConfigError, f"key '{key}' is missing; save the adapter again")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("r", 0),
        ("r", -4),
        ("r", 2.5),
        ("lora_alpha", "many"),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("rank_pattern", {"q_proj": 0}),
        ("target_modules", 3),
        ("target_modules", None),
    ],
)
def test_behaviour_10_an_impossible_value_is_named_with_its_key(
    key: str, value: object, tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config_of() | {key: value})

    _refused(tmp_path, AdapterConfigError, f"adapter_config.json: {key}.* is ")


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("layer_replication", [[0, 1]], "base of its own"),
        ("trainable_token_indices", [5], "without new tokens"),
        ("fan_in_fan_out", True, "train the adapter without it"),
        ("use_qalora", True, "train the adapter without it"),
        ("target_parameters", ["x"], "train the adapter without it"),
        ("alora_invocation_tokens", [1, 2], "train the adapter without it"),
        ("a_key_from_the_future", {"on": 1}, "train the adapter without it"),
    ],
)
def test_behaviour_10_a_key_we_do_not_honour_is_refused_by_name_and_value(
    key: str, value: object, remedy: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config_of() | {key: value})

    with pytest.raises(AdapterConfigError) as raised:
        validate_adapter(tmp_path, base=BASE, max_rank=16, name="sql")
    assert f"{key}={value!r} is not supported" in str(raised.value)
    assert remedy in str(raised.value)


def test_an_unknown_key_that_is_off_does_not_matter(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(a_key_from_the_future=None, another=False, third={}))

    assert validate_adapter(tmp_path, base=BASE, max_rank=16).rank == 8


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_starts_that_change_the_base_are_refused_with_the_conversion(start: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(init_lora_weights=start))

    _refused(tmp_path, AdapterConfigError, f"init_lora_weights='{start}' changes the base")


@pytest.mark.parametrize("start", [True, False, "gaussian", "Gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_alone_are_served(start: object, tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(init_lora_weights=start))

    assert validate_adapter(tmp_path, base=BASE, max_rank=16).rank == 8


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "layers_pattern"])
def test_a_broken_regular_expression_is_refused(key: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of() | {key: "layers.(", "rank_pattern": {}})

    _refused(tmp_path, AdapterConfigError, r"pattern 'layers.\(': it is not a regular expression")


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "layers_pattern"])
def test_a_regular_expression_that_could_take_for_ever_is_refused(key: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of() | {key: r"(?!x)(.*)*_proj"})

    _refused(tmp_path, AdapterConfigError, "or matching it could take forever.*; correct it, or name")


def test_layers_beside_a_regular_expression_have_no_meaning(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(target_modules=".*q_proj", layers_to_transform=[0]))

    _refused(tmp_path, AdapterConfigError, r"layers_to_transform=\[0\] has no meaning beside")


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_head_and_embedding_targets_without_weights_are_refused(target: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(target_modules=["q_proj", "v_proj", target]))

    _refused(tmp_path, AdapterFileError, f"no weights for '{target}'")


@pytest.mark.parametrize("modules", [["norm"], ["lm_head", "classifier"], ["model.layers.0.mlp"]])
def test_behaviour_10_whole_layers_other_than_embedding_and_head_are_refused(
    modules: list[str], tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config_of(modules_to_save=modules))

    _refused(tmp_path, AdapterConfigError, f"'{modules[-1]}' is not served from an adapter")


def test_dora_and_lora_bias_together_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(use_dora=True, lora_bias=True))

    _refused(tmp_path, AdapterConfigError, "lora_bias=True beside use_dora=True has no meaning")


@pytest.mark.parametrize(
    ("key", "part"), [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")]
)
def test_bias_and_magnitudes_are_there_if_and_only_if_configured(key: str, part: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "without", config=config_of() | {key: True})
    stray = f"base_model.model.model.layers.0.self_attn.q_proj.{part}"
    write_adapter(tmp_path / "with", tensors={**tensors_of(), stray: torch.zeros(32)})

    _refused(tmp_path / "without", AdapterFileError, f"q_proj has no {part}, .* has {key}=True")
    _refused(tmp_path / "with", AdapterFileError, f"q_proj has a {part}, .* has {key}=False")


def test_magnitudes_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    tensors = tensors_of()
    for layer in range(2):
        for name, width in (("q_proj", 32), ("v_proj", 17)):
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_magnitude_vector"
            tensors[path] = torch.ones(width)
    write_adapter(tmp_path, config=config_of(use_dora=True), tensors=tensors)

    _refused(tmp_path, AdapterShapeError, r"lora_magnitude_vector \(17,\), but this base needs \(16,\)")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("base_model.model.model.norm.weight", "is neither a LoRA weight"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "is neither a LoRA weight"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "without other layers and biases"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "is neither a LoRA weight"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "is neither a LoRA"),
    ],
)
def test_behaviour_10_tensors_of_an_unknown_kind_are_refused(key: str, message: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, tensors={**tensors_of(), key: torch.zeros(8, 32)})

    _refused(tmp_path, AdapterConfigError, message)


def test_integer_weights_are_refused_with_their_type(tmp_path: Path) -> None:
    tensors = tensors_of()
    first = next(iter(tensors))
    write_adapter(tmp_path, tensors={**tensors, first: tensors[first].to(torch.int8)})

    _refused(tmp_path, AdapterFileError, "is torch.int8; save the adapter as float32")


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of()
    del tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    write_adapter(tmp_path, tensors=tensors)

    _refused(tmp_path, AdapterFileError, "layers.1.self_attn.v_proj has lora_A but no lora_B")


def test_targeted_modules_without_weights_are_refused_with_the_first(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(targets=("q_proj", "v_proj", "up_proj")))

    _refused(tmp_path, AdapterFileError, r"no weights for 'model.layers.0.mlp.up_proj' \(2 such modules\)")


def test_weights_the_configuration_does_not_target_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(layers_to_transform=[0]))

    _refused(tmp_path, AdapterFileError, r"weights for 'model.layers.1.self_attn.q_proj' \(2 such modules\)")


@pytest.mark.parametrize("config", [config_of(targets=("c_attn",)), config_of(targets=())])
def test_behaviour_11_an_adapter_that_matches_nothing_is_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config)

    _refused(tmp_path, AdapterMatchesNothing, "no module of the base matches; target_modules=")


def test_behaviour_11_an_empty_weight_file_matches_nothing(tmp_path: Path) -> None:
    write_adapter(tmp_path, tensors={})

    _refused(tmp_path, AdapterMatchesNothing, "0 modules in the file")


def test_an_adapter_of_a_deeper_base_is_refused_with_the_layer_it_needs(tmp_path: Path) -> None:
    shallow = BaseDescription(
        "tiny-base", 1, {path: shape for path, shape in BASE.shapes.items() if ".0." in path}, layout={}
    )
    write_adapter(tmp_path)

    _refused(tmp_path, AdapterBaseMismatch, "it changes 'model.layers.1.self_attn.q_proj'", base=shallow)


def test_behaviour_10_another_bases_name_is_refused_with_both_names(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(base_model_name_or_path="someone/other-base"))

    _refused(tmp_path, AdapterBaseMismatch, "trained on 'someone/other-base', but 'tiny-base' is served")


@pytest.mark.parametrize(("theirs", "ours"), [(None, "tiny-base"), ("", "tiny-base"), ("someone/other", "")])
def test_an_unknown_base_name_on_either_side_is_no_mismatch(
    theirs: str | None, ours: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config_of(base_model_name_or_path=theirs))
    base = BaseDescription(ours, BASE.num_layers, BASE.shapes, BASE.layout)

    assert validate_adapter(tmp_path, base=base, max_rank=16).rank == 8


def test_behaviour_10_a_rank_over_the_limit_is_refused_with_both_ranks(tmp_path: Path) -> None:
    write_adapter(tmp_path, rank=32)

    _refused(tmp_path, AdapterRankError, r"rank 32 of .* is over max_lora_rank=16; raise max_lora_rank")


def test_one_module_over_the_limit_by_its_pattern_is_enough(tmp_path: Path) -> None:
    write_adapter(tmp_path, config=config_of(rank_pattern={"v_proj": 17}))

    _refused(tmp_path, AdapterRankError, "rank 17 of model.layers.0.self_attn.v_proj")


def test_behaviour_10_matrices_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    tensors = tensors_of()
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    write_adapter(tmp_path, tensors={**tensors, key: torch.zeros(8, 40)})

    _refused(tmp_path, AdapterShapeError, r"lora_A \(8, 40\) .* needs \(8, 32\) and \(32, 8\)")


def test_a_rank_that_is_not_the_configured_one_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, tensors=tensors_of(rank=4))

    _refused(tmp_path, AdapterShapeError, r"lora_A \(4, 32\).*rank 8 .* needs \(8, 32\)")


def test_other_files_than_the_pinned_revision_are_refused_with_both_digests(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    digest = adapter_digest(tmp_path)

    _refused(tmp_path, AdapterDigestMismatch, f"{digest}, but revision sha256:0000", revision="sha256:0000")


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no configuration"])
def test_damaged_files_say_nothing_against_a_pinned_revision(tmp_path: Path, damage: str) -> None:
    write_adapter(tmp_path)
    digest = adapter_digest(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
    else:
        (weights if damage == "no weights" else tmp_path / "adapter_config.json").unlink()

    _refused(tmp_path, AdapterDigestMismatch, f"it is not revision {digest}", revision=digest)


def test_a_pinned_revision_that_was_damaged_when_it_was_added_is_refused_as_it_is(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])

    _refused(tmp_path, AdapterFileError, "corrupt or truncated", revision=adapter_digest(tmp_path))


def test_the_pattern_order_of_the_file_decides_as_in_peft(tmp_path: Path) -> None:
    config = config_of(rank_pattern={"self_attn.q_proj": 8, "q_proj": 5}, lora_alpha=16)
    write_adapter(tmp_path, config=json.loads(json.dumps(config)))

    assert validate_adapter(tmp_path, base=BASE, max_rank=16).rank == 8


def test_a_fresh_adapter_that_changes_nothing_yet_is_served(tmp_path: Path) -> None:
    tensors = {key: tensor * (".lora_A." in key) for key, tensor in tensors_of().items()}
    write_adapter(tmp_path, tensors=tensors)

    assert validate_adapter(tmp_path, base=BASE, max_rank=16).rank == 8


@pytest.mark.parametrize("extra", ["_orig_mod.", "base_model.model.", "language_model."])
def test_what_a_wrapper_left_in_the_keys_is_named(extra: str, tmp_path: Path) -> None:
    prefix = "base_model.model."
    tensors = {key.replace(prefix, prefix + extra, 1): tensor for key, tensor in tensors_of().items()}
    write_adapter(tmp_path, tensors=tensors)

    _refused(
        tmp_path, AdapterMatchesNothing, f"; without '{extra[:-1]}' it would be there: save the adapter of"
    )


def test_control_characters_of_an_adapter_reach_no_terminal(tmp_path: Path) -> None:
    key = "base_model.model.\x1b[31m\x9b.lora_A.weight"
    write_adapter(tmp_path, tensors={**tensors_of(), key: torch.zeros(8, 32)})

    _refused(tmp_path, AdapterFileError, r": \\x1b\[31m\\x9b has lora_A but no lora_B")


def test_the_content_of_a_file_that_is_linked_to_is_not_told(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    for secret in ("password=hunter2", '["hunter2"]'):
        (tmp_path / "secret").write_text(secret)
        (tmp_path / "a" / "adapter_config.json").unlink()
        (tmp_path / "a" / "adapter_config.json").symlink_to(tmp_path / "secret")

        with pytest.raises(AdapterConfigError, match="the file is not that of PEFT") as raised:
            validate_adapter(tmp_path / "a", base=BASE, max_rank=16)
        assert "hunter2" not in str(raised.value)


def test_patterns_that_take_long_to_compile_are_refused(tmp_path: Path) -> None:
    write_adapter(
        tmp_path, config=config_of(rank_pattern={f"x{number}" + "(a|b)*" * 300: 4 for number in range(99)})
    )

    _refused(
        tmp_path, AdapterConfigError, "patterns have .* characters, at most 65536 are read; name modules"
    )


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [
        ("rank_pattern", {f"layers.{number}.x": 4 for number in range(2049)}, 2048),
        ("layers_pattern", ["layers"] * 2049, 2048),
        ("target_modules", ["q_proj"] * 65_537, 65_536),
    ],
)
def test_more_patterns_than_anyone_trains_with_are_refused(
    key: str, value: object, most: int, tmp_path: Path
) -> None:
    write_adapter(tmp_path, config=config_of() | {key: value})

    _refused(tmp_path, AdapterConfigError, f"{key} has {most + 1} entries, at most {most} are read")
