from __future__ import annotations

import pytest

from workers.engine.errors import AdapterConfigError
from workers.engine.lora.request import LoRARequest


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
