from __future__ import annotations

import pytest

from workers.engine.core.errors import AdapterConfigError, RequestError
from workers.engine.core.lora_request import LoRAMix, LoRARequest

SQL, CODE = LoRARequest("sql", 1, "a"), LoRARequest("code", 2, "b", scale=0.5)


def test_a_request_can_be_a_dictionary_key() -> None:
    assert LoRARequest("sql", 1, "a") == LoRARequest("sql", 1, "a")
    assert len({LoRARequest("sql", 1, "a"), LoRARequest("sql", 1, "a", "sha256:00")}) == 2


@pytest.mark.parametrize("lora_int_id", [0, -3, True, "7"])
def test_an_id_that_is_no_positive_integer_is_refused_with_its_value(lora_int_id: object) -> None:
    with pytest.raises(AdapterConfigError, match=f"'sql'.*lora_int_id is {lora_int_id!r}"):
        LoRARequest("sql", lora_int_id, "a")  # type: ignore[arg-type]


def test_an_empty_name_and_an_empty_path_are_refused() -> None:
    with pytest.raises(AdapterConfigError, match="lora_name is empty"):
        LoRARequest("", 1, "a")
    with pytest.raises(AdapterConfigError, match="'sql': lora_path is empty"):
        LoRARequest("sql", 1, "")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e39, -(10**400), True, "1"])
def test_a_scale_or_weight_that_kernels_cannot_take_is_refused_with_its_value(scale: float) -> None:
    with pytest.raises(RequestError, match="'sql': scale is"):
        LoRARequest("sql", 1, "a", scale=scale)
    with pytest.raises(RequestError, match="'code': weight is"):
        LoRAMix([(SQL, 1.0), (CODE, scale)])


def test_a_product_of_weight_and_scale_that_is_too_large_is_refused() -> None:
    with pytest.raises(RequestError, match=r"'sql': weight \* scale is 9.0*1e\+76"):
        LoRAMix([(LoRARequest("sql", 1, "a", scale=3e38), 3e38)])


def test_a_mix_can_be_a_dictionary_key_however_it_was_given() -> None:
    assert LoRAMix([(SQL, 1.0), (CODE, -2)]) == LoRAMix(((SQL, 1.0), (CODE, -2.0)))
    assert len({LoRAMix([(SQL, 1.0)]), LoRAMix([(SQL, 0.5)])}) == 2


def test_a_mix_of_nothing_of_something_twice_or_without_weights_is_refused() -> None:
    with pytest.raises(RequestError, match="without members"):
        LoRAMix([])
    with pytest.raises(RequestError, match="'sql' is in the mix 2 times"):
        LoRAMix([(SQL, 1.0), (CODE, 1.0), (SQL, 0.5)])
    with pytest.raises(RequestError, match="give pairs of a LoRARequest and its weight"):
        LoRAMix([SQL, CODE])  # type: ignore[list-item]
