"""The engine's LoRA adapters: read, checked, kept on the host, given slots."""

from __future__ import annotations

from workers.engine.lora.base import BaseDescription, ModuleShape, describe_base
from workers.engine.lora.digest import adapter_digest
from workers.engine.lora.hub_resolver import HubResolver
from workers.engine.lora.manager import LoRAManager
from workers.engine.lora.request import AnyLoRA, LoRAMix, LoRARequest
from workers.engine.lora.residency import ResidencyChange, Tier
from workers.engine.lora.resolvers import AdapterResolver, FolderResolver, ResolverChain
from workers.engine.lora.stats import AdapterStats, RevisionStats
from workers.engine.lora.validate import AdapterDescription, validate_adapter

__all__ = [
    "LoRARequest",
    "LoRAMix",
    "AnyLoRA",
    "LoRAManager",
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
