"""Which adapter a request asks for."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine.errors import AdapterConfigError


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter by name, id and folder; a `revision` is the content digest that its files must have."""

    lora_name: str
    lora_int_id: int
    lora_path: str
    revision: str | None = None

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
