"""What the command line reads from the environment, each verb its own part, once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lorayard.contract.addresses import DatabasePassword, SecretServerUrl
from lorayard.contract.pool import GenerationConfigUse, pool_id


class LedgerSettings(DatabasePassword):
    """Where the ledger is: `LORAYARD_DATABASE_URL`."""

    database_url: SecretServerUrl


class PoolSettings(LedgerSettings):
    """Which pool is meant: `LORAYARD_MODEL` run as `LORAYARD_DTYPE` with `LORAYARD_GENERATION_CONFIG`.

    Without a model it is one of those that the ledger knows.
    """

    model: Path | None = None
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16|float16)$")
    generation_config: GenerationConfigUse = "auto"

    @property
    def pool(self) -> str | None:
        """The id of the pool of the model's folder, None if there is no such folder.

        Raises FileNotFoundError if the folder is not a checkpoint.
        """
        if self.model is None or not self.model.is_dir():
            return None
        return pool_id(self.model, self.dtype, generation_config=self.generation_config)


class StoreSettings(PoolSettings):
    """Where adapters are kept, and the base's name and the limits of what the workers take."""

    adapter_store: Path
    max_lora_rank: int = Field(default=64, ge=1)
    max_cpu_lora_bytes: int | None = Field(default=None, ge=1)
    max_saved_module_bytes: int = Field(default=1 << 30, ge=1)
    lora_load_timeout_s: float = Field(default=60.0, gt=0)
    served_model_name: str | None = None
