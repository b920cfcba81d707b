"""Which adapters can be taken for one request."""

from __future__ import annotations

import pytest

from workers.engine.core.errors import RequestError
from workers.engine.core.lora_request import LoRARequest
from workers.engine.lora.residency.seating import check_mixable
from workers.engine.lora.tables.adapter_weights import AdapterWeights

SQL, CODE = LoRARequest("sql", 1, "a"), LoRARequest("code", 2, "b", scale=0.5)


def test_an_adapter_that_must_be_alone_is_refused_in_a_mix_by_name() -> None:
    plain, odd = AdapterWeights("0", 4, {}), AdapterWeights("1", 4, {}, unmixable="it is odd")

    check_mixable([odd], [CODE])
    check_mixable([plain, plain], [SQL, CODE])
    with pytest.raises(RequestError, match="'code' cannot be in a LoRAMix: it is odd; ask for it alone"):
        check_mixable([plain, odd], [SQL, CODE])
