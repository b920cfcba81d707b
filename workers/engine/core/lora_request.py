"""Which adapters a request asks for, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.engine.core.errors import AdapterConfigError, RequestError

_MAX_SCALE = 3.4028234663852886e38
"""The largest float32: kernels take scales in that."""


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter by name, id and folder; a `revision` is the content digest that its files must have.

    `scale` multiplies what the adapter adds to the request that bears it; it may be 0 or negative. The
    adapter's slot and its copy on the host are one for all scales. `load_inplace` has `LLMEngine.add_lora`
    read the files again; elsewhere it changes nothing. `base_model_name` is what its base is called, whatever
    its own file says; with "" names are not compared, only shapes.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str
    revision: str | None = None
    scale: float = 1.0
    load_inplace: bool = field(default=False, compare=False)
    base_model_name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.lora_name:
            raise AdapterConfigError("lora_name is empty; give the adapter a name")
        if (
            isinstance(self.lora_int_id, bool)
            or not isinstance(self.lora_int_id, int)
            or self.lora_int_id < 1
        ):
            raise AdapterConfigError(
                f"adapter {self.lora_name!r}: lora_int_id is {self.lora_int_id!r}; give an integer >= 1"
            )
        if not self.lora_path:
            raise AdapterConfigError(
                f"adapter {self.lora_name!r}: lora_path is empty; give the adapter's folder"
            )
        _require_scale("scale", self.scale, self.lora_name)


@dataclass(frozen=True, slots=True)
class LoRAMix:
    """Several adapters upon one request, each with its weight: W + sum of weight * scale * alpha / r * B A.

    The same as PEFT's `add_weighted_adapter(combination_type="cat")` of these adapters with these weights,
    save that PEFT 0.21 multiplies the sum by the square root of all ranks if the first is rsLoRA.
    """

    members: Sequence[tuple[LoRARequest, float]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(map(_pair, self.members)))  # hashable, however given
        if not self.members:
            raise RequestError("a LoRAMix without members; give an adapter, or None for the base model")
        names = [lora.lora_name for lora, _ in self.members]
        for lora, weight in self.members:
            _require_scale("weight", weight, lora.lora_name)
            _require_scale("weight * scale", weight * lora.scale, lora.lora_name)
            if names.count(lora.lora_name) > 1:
                raise RequestError(
                    f"adapter {lora.lora_name!r} is in the mix {names.count(lora.lora_name)} times; give it "
                    "once, with the sum of its weights"
                )


AnyLoRA = LoRARequest | LoRAMix


def _pair(member: tuple[LoRARequest, float]) -> tuple[LoRARequest, float]:
    match member:
        case (LoRARequest() as lora, weight):
            return lora, weight
    raise RequestError(f"{member!r:.80} in a LoRAMix; give pairs of a LoRARequest and its weight")


def _require_scale(what: str, value: float, name: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _MAX_SCALE:  # false for NaN
        raise RequestError(
            f"adapter {name!r}: {what} is {value!r}; give a finite number of float32's range, 1.0 for the "
            "adapter as trained"
        )
