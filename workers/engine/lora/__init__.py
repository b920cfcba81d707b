"""The engine's LoRA adapters: read, checked, kept on the host, given slots."""

from __future__ import annotations

from workers.engine.core.adapter_stats import AdapterStats, RevisionStats
from workers.engine.core.lora_request import AnyLoRA, LoRAMix, LoRARequest
from workers.engine.core.residency_change import ResidencyChange, Tier
from workers.engine.lora.files.base import BaseDescription, ModuleShape, describe_base
from workers.engine.lora.files.digest import adapter_digest
from workers.engine.lora.files.hub_resolver import HubResolver
from workers.engine.lora.files.resolvers import AdapterResolver, FolderResolver, ResolverChain
from workers.engine.lora.files.validate import AdapterDescription, validate_adapter

__all__ = [
    "LoRARequest",
    "LoRAMix",
    "AnyLoRA",
    "ModuleShape",
    "BaseDescription",
    "describe_base",
    "AdapterDescription",
    "validate_adapter",
    "adapter_digest",
    "AdapterResolver",
    "FolderResolver",
    "HubResolver",
    "ResolverChain",
    "AdapterStats",
    "RevisionStats",
    "ResidencyChange",
    "Tier",
]
